// SPDX-License-Identifier: Apache-2.0
//! A child process that cannot outlive us.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::remains::remains;

/// Lines of a log that a failure report shows.
const REPORTED_LINES: usize = 25;

/// A running program with its output in a file. Killed, and waited for, on drop.
///
/// The kernel also kills it when the *thread* that started it ends: start long-lived ones from a thread that
/// stays.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with what `prepare` adds; standard error goes to `log`, and standard output too unless
    /// `prepare` sends it elsewhere.
    ///
    /// # Errors
    /// When the log cannot be written or the program cannot be started.
    pub fn start(program: &Path, log: PathBuf, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        // `setpriv` (util-linux, always there on Debian) becomes the program, so the process id is the program's.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Of its own group: a Ctrl-C at the terminal is for us, and we end what we started in order.
        command.process_group(0);
        prepare(&mut command);
        let mut remains = remains();
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        remains.processes.insert(child.id());
        drop(remains);
        Ok(Self { child, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut remains = remains();
        let ended = self.child.try_wait()?;
        if ended.is_some() {
            remains.processes.remove(&self.child.id());
        }
        Ok(ended)
    }

    /// Stops it where it is, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Kills it at once and waits until it is gone. Nothing happens if it has ended before.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        let mut remains = remains();
        self.child.kill()?;
        let status = self.child.wait()?;
        remains.processes.remove(&self.child.id());
        Ok(status)
    }

    /// Asks it to end, waits for that, and kills it when it takes longer than `patience`.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        let pid = Pid::from_child(&self.child);
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).context("watch a child process")?;
        kill_process(pid, Signal::TERM).context("ask a child process to end")?;
        let deadline =
            Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
        let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
        if poll(&mut polled, Some(&deadline)).context("wait for a child process")? == 0 {
            let status = self.kill()?;
            bail!("process {pid:?} did not end within {patience:?} and was killed ({status})");
        }
        self.ended()?.context("a process that has ended has a status")
    }

    /// Its standard input, once, if `prepare` made it a pipe.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has been waited for already, which is the aim.
        let _ = self.kill();
    }
}

/// The last lines of a file, for a failure report.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(REPORTED_LINES)..].join("\n")
}
