//! The wait for the end of a process, which the kernel tells by the process's handle (`pidfd_open(2)`).
//! Never sends a signal. Invariant: a wait ends when the process does, or when its time is over.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How often a child is looked at of which there is no handle.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until a process has ended, reaped or not; `false` when it runs for longer than so.
pub(crate) fn has_ended_within(process: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        // Readable once it has ended.
        let mut ends = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut ends, left.as_ref()) {
            Ok(ended) => return Ok(ended > 0),
            // A signal came in between: what is left of the time is waited for.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for the end of a child and reaps it; `None` when it runs for longer than so.
pub(crate) fn exited_within(
    child: &mut Child,
    patience: Duration,
) -> io::Result<Option<ExitStatus>> {
    // Its number is its own until it is reaped, which this does alone.
    if let ended @ Some(_) = child.try_wait()? {
        return Ok(ended);
    }
    match pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
        Ok(process) => {
            has_ended_within(&process, patience)?;
            child.try_wait()
        }
        Err(_) => exited_without_handle(child, patience),
    }
}

/// Looks again and again, where there is no handle to be had: too many files are open, or the kernel, or a filter of
/// system calls, knows none.
fn exited_without_handle(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || begun.elapsed() >= patience {
            return Ok(ended);
        }
        std::thread::sleep(LOOK_INTERVAL.min(patience));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_wait_for_a_child_ends_with_it_or_with_its_time() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let soon = Duration::from_millis(20);
        assert_eq!(exited_within(&mut child, soon).unwrap(), None);
        child.kill().unwrap();
        let begun = Instant::now();
        let ended = exited_within(&mut child, Duration::from_secs(600)).unwrap();
        assert!(ended.is_some_and(|status| !status.success()));
        assert!(begun.elapsed() < Duration::from_secs(300), "it waited on");
        assert_eq!(exited_within(&mut child, soon).unwrap(), ended);
    }

    #[test]
    fn a_child_without_a_handle_is_looked_at_until_it_ends() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let soon = Duration::from_millis(20);
        assert_eq!(exited_without_handle(&mut child, soon).unwrap(), None);
        child.kill().unwrap();
        let ended = exited_without_handle(&mut child, Duration::from_secs(600));
        assert!(ended.unwrap().is_some_and(|status| !status.success()));
    }
}
