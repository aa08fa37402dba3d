//! What needs root says so and is left to the netns level; here is what any developer can run.

use super::*;

#[test]
fn names_of_other_namespaces_are_never_touched() {
    assert!(names_with("netpol-no-such-run-").is_empty());
}

#[test]
fn removing_a_name_that_is_not_there_is_an_error_and_not_a_panic() {
    let error = remove_named("netpol-no-such-run").expect_err("nothing to remove");
    assert!(format!("{error:#}").contains("netpol-no-such-run"), "{error:#}");
}
