//! What ends a command that would go on: Ctrl-C, and the end of standard input for one that was asked from afar.
//!
//! Each waits on a thread of its own, which nobody waits for: one that writes to a pipe that nobody reads must end all the
//! same, and one that reads a terminal must not hold up the end.

use std::io;
use std::thread;

use tokio::sync::oneshot;

use super::EXIT_INTERRUPTED;

/// Waits for Ctrl-C, after which what is at hand is still shown. The second ends the process there and then.
pub(super) async fn interrupted() {
    let (first, waited) = oneshot::channel();
    let started = thread::Builder::new().name("ctrl-c".to_owned()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let is_told = runtime.block_on(tokio::signal::ctrl_c()).is_ok() && first.send(()).is_ok();
        if is_told && runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            std::process::exit(EXIT_INTERRUPTED.into());
        }
    });
    if started.is_err() || waited.await.is_err() {
        // The signal then does what it does by itself.
        std::future::pending::<()>().await;
    }
}

/// Waits for the end of standard input, if that is wanted.
pub(super) async fn stdin_ended(wanted: bool) {
    let (ended, waited) = oneshot::channel::<()>();
    let watch = move || {
        // One that breaks has ended too.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        _ = ended.send(());
    };
    if !wanted || thread::Builder::new().name("stdin".to_owned()).spawn(watch).is_err() || waited.await.is_err() {
        std::future::pending::<()>().await;
    }
}
