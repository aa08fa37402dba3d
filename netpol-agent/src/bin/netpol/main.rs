//! `netpol`: what is enforced, and why; also as `kubectl netpol`.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
