//! Waking at a moment. The runtime's own timers are as coarse as a millisecond, which is more than
//! what is measured here.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// A timer of the system, for one task at a time.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
}

impl Alarm {
    /// Makes one; within a runtime.
    ///
    /// # Errors
    /// What the system says when it has none to give.
    pub fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Its successor is `unsafe`, for types whose descriptor changes while it is registered:
        // that of an `OwnedFd` does not.
        #[allow(deprecated)]
        let timer = AsyncFd::new(timer)?;
        Ok(Alarm { timer })
    }

    /// Returns at `due`, or at once if that is over.
    ///
    /// # Errors
    /// What the system says; it is not expected to.
    pub async fn wait_until(&self, due: Instant) -> io::Result<()> {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            let it_value =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0; 8];
            let read =
                ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?));
            // Whether it had gone off or not, what was seen is over.
            if let Ok(read) = read {
                read?;
                ready.clear_ready();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_is_woken_early() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let alarm = Alarm::new().unwrap();
            for wait_us in [0, 1, 50, 1500, 20_000] {
                let due = Instant::now() + Duration::from_micros(wait_us);
                alarm.wait_until(due).await.unwrap();
                assert!(Instant::now() >= due);
            }
            alarm.wait_until(Instant::now() - Duration::from_secs(1)).await.unwrap();
        });
    }
}
