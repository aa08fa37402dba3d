use super::*;
use crate::testing::{in_sandbox, run};

#[test]
fn a_directory_that_is_no_bpffs_is_refused_with_the_mount_command() {
    let error = PinDir::create(Path::new("/proc")).unwrap_err().to_string();
    assert!(error.contains("mount -t bpf bpf /proc"), "{error}");
    let error = PinDir::create(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent is not a BPF file system"), "{error}");
}

#[test]
fn pin_names_that_are_not_ours_belong_to_no_interface() {
    assert_eq!(interface_of("7-from_pod"), Some(7));
    assert_eq!(interface_of("70000-to_pod"), Some(70_000));
    assert_eq!(interface_of("7-clsact"), Some(7));
    for other in ["7", "from_pod", "x-to_pod", "7-other", "-1-to_pod", "", "elsewhere-7-to_pod-9"] {
        assert_eq!(interface_of(other), None, "{other}");
    }
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused_until_the_first_is_gone() {
    in_sandbox(|sandbox| {
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        let lock = pins.lock().unwrap();
        let second = PinDir::create(&sandbox.bpffs).unwrap();
        assert!(matches!(second.lock(), Err(PinError::Locked { .. })));
        drop(lock);
        second.lock().unwrap();
    });
}

#[test]
fn removing_all_leaves_an_empty_file_system_and_other_peoples_directories() {
    in_sandbox(|sandbox| {
        fs::create_dir(sandbox.bpffs.join("foreign")).unwrap();
        let before = run("ls", sandbox.bpffs.to_str().unwrap());
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        fs::create_dir_all(pins.root.join("later/version")).unwrap();
        pins.remove_all().unwrap();
        pins.remove_all().unwrap();
        assert_eq!(run("ls", sandbox.bpffs.to_str().unwrap()), before);
    });
}

#[test]
fn a_map_of_another_layout_is_known_by_its_name() {
    in_sandbox(|sandbox| {
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        let own = pins.map("ALLOW");
        assert_eq!(own, pins.maps().join(format!("ALLOW-v{}", layout("ALLOW"))));
        // Directories do for pins here.
        for file in
            [own.as_path(), &pins.maps().join("ALLOW-v99"), &pins.maps().join("GONE-v1"), &pins.maps().join("x")]
        {
            fs::create_dir(file).unwrap();
        }
        let found = pins.other_layouts(&BTreeSet::from(["ALLOW"])).unwrap();
        let found: Vec<(&str, u32)> = found.iter().map(|it| (it.name.as_str(), it.layout)).collect();
        assert_eq!(found, [("ALLOW", 99), ("GONE", 1)]);
    });
}
