//! `netpol-cni`: the chained CNI plugin.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
