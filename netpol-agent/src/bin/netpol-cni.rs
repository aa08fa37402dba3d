//! `netpol-cni`: the chained CNI plugin. See `netpol_agent::cni::plugin`.

fn main() -> std::process::ExitCode {
    netpol_agent::cni::plugin::run()
}
