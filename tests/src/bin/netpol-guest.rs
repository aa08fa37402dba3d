//! `init` of the machines that `cargo xtask kernels` boots. See [`netpol_tests::guest`].

use std::process::ExitCode;

fn main() -> ExitCode {
    netpol_tests::guest::run()
}
