// SPDX-License-Identifier: Apache-2.0
//! The host daemon under test: started, killed without warning, started again, stopped.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::admin::{Client, Request, Response};

use crate::process::Process;

/// A daemon whose admin socket does not answer by then has failed.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Time for an orderly end.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at the socket; only its appearance is waited for this way.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A running `meshvisor-hostd`. Killed on drop.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    runtime: PathBuf,
    arguments: Vec<OsString>,
    process: Process,
}

impl Daemon {
    /// Starts the daemon and waits until its admin socket takes connections.
    ///
    /// # Errors
    /// When it ends early or takes too long; the error holds the end of its log.
    pub fn start(program: &Path, manifests: &Path, runtime: &Path) -> Result<Self> {
        Self::start_with(program, manifests, runtime, None)
    }

    /// As [`Daemon::start`], with a settings file.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with(
        program: &Path,
        manifests: &Path,
        runtime: &Path,
        settings: Option<&Path>,
    ) -> Result<Self> {
        let mut arguments: Vec<OsString> = vec!["--manifests".into(), manifests.into()];
        if let Some(settings) = settings {
            arguments.extend(["--config".into(), settings.into()]);
        }
        Self::start_as(program, runtime, arguments)
    }

    /// Starts one that only looks into guests, each by its name and the file of its RAM.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn inspect(program: &Path, guests: &[(&str, &Path)], runtime: &Path) -> Result<Self> {
        let arguments = guests.iter().flat_map(|(name, path)| {
            let mut guest = OsString::from(format!("{name}="));
            guest.push(path);
            ["--inspect".into(), guest]
        });
        Self::start_as(program, runtime, arguments.collect())
    }

    fn start_as(program: &Path, runtime: &Path, arguments: Vec<OsString>) -> Result<Self> {
        let process = spawn(program, runtime, &arguments)?;
        let mut daemon = Self { program: program.into(), runtime: runtime.into(), arguments, process };
        daemon.await_admin()?;
        Ok(daemon)
    }

    /// Kills it without warning, as a crash would.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("kill the daemon").map(drop)
    }

    /// Starts it again after it was killed or stopped.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.program, &self.runtime, &self.arguments)?;
        self.await_admin()
    }

    /// Ends it in order; it must succeed at that.
    ///
    /// # Errors
    /// When it has to be killed, or reports a failure.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop(STOP_LIMIT)?;
        if !status.success() {
            bail!("the daemon ended with {status}\n{}", self.report());
        }
        Ok(())
    }

    /// Its admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.runtime.join("admin.sock")
    }

    /// What it answers.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn ask(&self, request: &Request) -> Result<Response> {
        let mut client = Client::connect(&self.admin_socket())?;
        client.call(request).with_context(|| format!("ask {request:?}"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Processor time that it has used, to a hundredth of a second.
    ///
    /// # Errors
    /// When it is not running.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // Fields count from the state, behind the name in parentheses: 11 and 12 are user and system time.
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
        let mut times = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) else {
            bail!("{path} does not look as expected: {stat}");
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs(user + system) / u32::try_from(ticks_per_second)?)
    }

    /// Processor time that its threads of a name have used, to the nanosecond.
    ///
    /// # Errors
    /// When it is not running, or has no such thread.
    pub fn thread_time(&self, name: &str) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.pid());
        let mut used = None;
        for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            let task = task?.path();
            // A thread may end meanwhile.
            let Ok(comm) = fs::read_to_string(task.join("comm")) else { continue };
            if comm.trim_end() == name {
                let stat = fs::read_to_string(task.join("schedstat")).context("read a thread's times")?;
                let ns =
                    stat.split(' ').next().and_then(|ns| ns.parse().ok()).context("a time comes first")?;
                used = Some(used.unwrap_or(Duration::ZERO) + Duration::from_nanos(ns));
            }
        }
        used.with_context(|| format!("the daemon has no thread {name}"))
    }

    /// Memory that is its own, in KiB: guests' RAM, which it shares, is not.
    ///
    /// # Errors
    /// When it is not running.
    pub fn private_kib(&self) -> Result<u64> {
        private_kib(self.pid())
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(log_file(&self.runtime)).unwrap_or_default()
    }

    /// For a failure report: the end of its log.
    #[must_use]
    pub fn report(&self) -> String {
        format!("--- daemon\n{}", self.process.log_tail())
    }

    fn await_admin(&mut self) -> Result<()> {
        let socket = self.admin_socket();
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(&socket).is_err() {
            if let Some(status) = self.process.ended()? {
                bail!("the daemon ended with {status} while starting\n{}", self.report());
            }
            if Instant::now() > deadline {
                bail!("no admin socket within {START_LIMIT:?}\n{}", self.report());
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(())
    }
}

fn spawn(program: &Path, runtime: &Path, arguments: &[OsString]) -> Result<Process> {
    Process::start(program, log_file(runtime), |command| {
        command.arg("--runtime-dir").arg(runtime).args(arguments);
    })
}

/// Memory that is a process's own, in KiB: what it shares with others is not.
///
/// # Errors
/// When there is no such process.
pub fn private_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    words.context("the system tells its memory")?.parse().context("memory is a number")
}

fn log_file(runtime: &Path) -> PathBuf {
    runtime.join("hostd.log")
}
