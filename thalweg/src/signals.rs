//! Signals: SIGTERM and SIGINT as an orderly stop.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

/// How long a signal waits for what starts: it answers a moment before it is known
/// to serve, and who was answered may ask it to stop.
const START_GRACE: Duration = Duration::from_secs(1);

/// What signals and the start come to.
#[derive(Default)]
pub(crate) struct Stop {
    /// Whether there is something that serves, and whether it is to stop.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

/// Lets SIGTERM and SIGINT stop what serves once it does; before, they end the process.
pub(crate) fn stop_on_signals() -> std::io::Result<Arc<Stop>> {
    let (mut receiver, sender) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    let stop = Arc::new(Stop::default());
    let told = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if receiver.read_exact(&mut [0]).is_ok() && !told.asked() {
            let _ = signal_hook::low_level::emulate_default_handler(SIGTERM);
        }
    })?;
    Ok(stop)
}

impl Stop {
    fn state(&self) -> MutexGuard<'_, (bool, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something now that serves.
    pub(crate) fn serves(&self) {
        self.state().0 = true;
        self.changed.notify_all();
    }

    /// A signal came; false when nothing serves yet.
    fn asked(&self) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), START_GRACE, |state| !state.0);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.1 = true;
        self.changed.notify_all();
        state.0
    }

    /// Returns when it is to stop.
    pub(crate) fn wait(&self) {
        let waited = self.changed.wait_while(self.state(), |state| !state.1);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_the_wait() {
        let stop = stop_on_signals().unwrap();
        // One that comes a moment before the node is known to serve counts as well.
        signal_hook::low_level::raise(SIGTERM).unwrap();
        stop.serves();
        stop.wait();
    }
}
