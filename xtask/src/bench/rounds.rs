// SPDX-License-Identifier: Apache-2.0
//! Measuring: windows in which both programs had their processor, and rounds in which the machine held still.
//!
//! On virtual processors the same programs run up to twice as fast or slow from one minute to the next. So the
//! contenders take turns within a round, a probe (two frames that go back and forth over a bare back end) before
//! and after says whether the machine changed meanwhile, and only the ratio within a round means anything. Where the
//! machine changes from one second to the next, each contender's best window says what it can do at the best time of all.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use testkit::daemon::Daemon;
use testkit::scratch::Scratch;

use super::cases::{Load, Program};
use super::ours;
use super::ovs::Ovs;
use super::testpmd::{Listener, Testpmd};

/// Windows of one measurement.
const WINDOWS: usize = 5;
/// Length of a window.
const WINDOW: Duration = Duration::from_millis(500);
/// Length of the window over which idleness is measured: a hundredth of a second of it is 0.2 percent.
const IDLE_WINDOW: Duration = Duration::from_secs(5);
/// Processor time that generator and switch must each have had of a window's length.
const DUTY_MIN: f64 = 0.93;
/// Shortest time between two looks at the number of flows.
const FLOWS_WINDOW: Duration = Duration::from_millis(100);
/// Part of its flows that a generator may have opened while new ones are counted: later most frames are of old ones.
const NEW_FLOWS_MAX: f64 = 0.4;
/// A generator that has not moved a frame by then never will.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Who is measured.
#[derive(Clone, Copy)]
pub enum Contender {
    Ours(Program),
    Ovs(Program),
    /// Two bare back ends that pass everything on and decide nothing: what rings and generator can do.
    Bare,
}

/// One measurement.
#[derive(Clone, Copy)]
pub struct Sample {
    pub value: f64,
    /// The best of its windows.
    pub best: f64,
    /// Whether both programs had their processors.
    pub steady: bool,
}

impl Sample {
    fn converted(self, convert: impl Fn(f64) -> f64) -> Self {
        Self { value: convert(self.value), best: convert(self.best), ..self }
    }
}

/// A running switch.
enum Switch {
    Ours(Daemon),
    Ovs(Ovs),
    Bare(Testpmd),
}

impl Switch {
    fn pid(&self) -> u32 {
        match self {
            Self::Ours(daemon) => daemon.pid(),
            Self::Ovs(ovs) => ovs.pid(),
            Self::Bare(ends) => ends.pid(),
        }
    }

    fn flows(&self) -> Result<u64> {
        match self {
            Self::Ours(daemon) => Ok(ours::status(daemon)?.flows),
            Self::Ovs(ovs) => ovs.connections(),
            Self::Bare(_) => bail!("a bare back end knows no flows"),
        }
    }
}

/// Measures one contender under a load.
///
/// # Errors
/// When something does not start or no frame arrives.
pub fn measure(contender: Contender, load: Load) -> Result<Sample> {
    let dir = Scratch::new("bench")?;
    let guests = match load {
        Load::Idle { vms } => vms,
        _ => 2,
    };
    let sockets: Vec<PathBuf> = (0..guests).map(|number| dir.join(format!("{number}.sock"))).collect();
    let calls_service = matches!(contender, Contender::Ours(Program::Service));
    // A listener has to be there first.
    let (switch, mut generator) = match contender {
        Contender::Ours(program) => {
            let switch = ours::start(dir.path(), &sockets, program, load.flows())?;
            (
                Switch::Ours(switch),
                Testpmd::guests(dir.path(), &sockets, Listener::Switch, load, calls_service)?,
            )
        }
        Contender::Ovs(program) => {
            let switch = Ovs::start(dir.path(), &sockets, program)?;
            (Switch::Ovs(switch), Testpmd::guests(dir.path(), &sockets, Listener::Guests, load, false)?)
        }
        Contender::Bare => {
            let ends = bare(dir.path(), &sockets)?;
            (Switch::Bare(ends), Testpmd::guests(dir.path(), &sockets, Listener::Switch, load, false)?)
        }
    };
    if calls_service {
        call_first(&switch, &mut generator, load.flows() as u64)?;
    }
    match load {
        Load::Stream { frame_bytes, flows, in_bits, .. } => {
            generator.go(None)?;
            // Enough for every flow to have been opened, so that the windows see an even load.
            await_frames(&mut generator, (4 * flows as u64).max(1000))?;
            let sample = windows(&switch, &mut generator)?;
            let scale = if in_bits { frame_bytes as f64 * 8e-9 } else { 1e-6 };
            Ok(sample.converted(|rate| rate * scale))
        }
        Load::NewFlows { flows } => {
            generator.go(None)?;
            new_flows(&switch, flows)
        }
        Load::Questions { .. } => {
            generator.go(None)?;
            await_frames(&mut generator, 1000)?;
            windows(&switch, &mut generator)
        }
        Load::Hop => {
            generator.go(Some(1))?;
            await_frames(&mut generator, 1000)?;
            let sample = windows(&switch, &mut generator)?;
            Ok(sample.converted(|rate| 1e6 / rate))
        }
        Load::Idle { .. } => {
            let before = Usage::of(switch.pid())?;
            std::thread::park_timeout(IDLE_WINDOW);
            let value = 100.0 * before.total_since()?;
            Ok(Sample { value, best: value, steady: true })
        }
    }
}

/// How long two frames take to and fro over a bare back end, in seconds.
///
/// # Errors
/// When it does not start.
pub fn probe() -> Result<f64> {
    let dir = Scratch::new("probe")?;
    let sockets = [dir.join("0.sock"), dir.join("1.sock")];
    let _ends = bare(dir.path(), &sockets)?;
    let mut generator = Testpmd::guests(dir.path(), &sockets, Listener::Switch, Load::Hop, false)?;
    generator.go(Some(1))?;
    await_frames(&mut generator, 1000)?;
    let (start, before) = (Instant::now(), generator.received()?);
    std::thread::park_timeout(WINDOW);
    Ok(start.elapsed().as_secs_f64() / (generator.received()? - before).max(1) as f64)
}

/// Bare back ends, at work.
fn bare(dir: &Path, sockets: &[PathBuf]) -> Result<Testpmd> {
    let mut ends = Testpmd::back_ends(dir, sockets)?;
    ends.go(None)?;
    Ok(ends)
}

/// Has the first guest open all flows before the second answers: an answer that came first would open a flow of its own.
fn call_first(switch: &Switch, generator: &mut Testpmd, flows: u64) -> Result<()> {
    generator.take_part(1)?;
    generator.go(None)?;
    let deadline = Instant::now() + START_LIMIT;
    while switch.flows()? < flows {
        if Instant::now() > deadline {
            bail!("after {START_LIMIT:?} there are {} flows\n{}", switch.flows()?, generator.report());
        }
        std::thread::park_timeout(FLOWS_WINDOW);
    }
    generator.pause()?;
    generator.take_part(2)
}

/// Frames per second, the median of some windows.
fn windows(switch: &Switch, generator: &mut Testpmd) -> Result<Sample> {
    let mut rates = Vec::with_capacity(WINDOWS);
    let mut duties = Vec::with_capacity(WINDOWS);
    let mut before = (Instant::now(), generator.received()?);
    for _ in 0..WINDOWS {
        let usages = [Usage::of(switch.pid())?, Usage::of(generator.pid())?];
        std::thread::park_timeout(WINDOW);
        for usage in usages {
            duties.push(usage.busiest_since()?);
        }
        let after = (Instant::now(), generator.received()?);
        rates.push((after.1 - before.1) as f64 / (after.0 - before.0).as_secs_f64());
        before = after;
    }
    let best = rates.iter().copied().fold(0.0, f64::max);
    Ok(Sample { value: median(&mut rates), best, steady: median(&mut duties) >= DUTY_MIN })
}

/// Flows opened per second, while most that come are new.
fn new_flows(switch: &Switch, flows: usize) -> Result<Sample> {
    let deadline = Instant::now() + START_LIMIT;
    let mut first: Option<(Instant, u64, Usage)> = None;
    let mut last: Option<(Instant, u64)> = None;
    loop {
        let (at, count) = (Instant::now(), switch.flows()?);
        let open = count as f64 / flows as f64;
        match &first {
            None if count > 0 => first = Some((at, count, Usage::of(switch.pid())?)),
            Some((start, before, usage)) if open >= NEW_FLOWS_MAX => {
                // What came in after the limit was reached may be old: the last look within it counts.
                let (at, count) = last.unwrap_or((at, count));
                let value = (count - before) as f64 / (at - *start).as_secs_f64();
                return Ok(Sample { value, best: value, steady: usage.busiest_since()? >= DUTY_MIN });
            }
            _ => last = first.is_some().then_some((at, count)),
        }
        if at > deadline {
            bail!("after {START_LIMIT:?} there are {count} flows");
        }
        std::thread::park_timeout(FLOWS_WINDOW);
    }
}

/// Waits until the guests have received so many.
///
/// # Errors
/// When they do not in a minute.
pub fn await_frames(generator: &mut Testpmd, frames: u64) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while generator.received()? < frames {
        if Instant::now() > deadline {
            bail!("the generator's frames do not arrive\n{}", generator.report());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// The middle one, or the lower of the two in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Processor time of a process's threads up to a moment.
struct Usage {
    pid: u32,
    at: Instant,
    threads: HashMap<String, u64>,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self { pid, at: Instant::now(), threads: nanoseconds(pid)? })
    }

    /// What each thread has used since, as a part of the time passed.
    fn since(&self) -> Result<impl Iterator<Item = f64>> {
        let passed = self.at.elapsed().as_nanos() as f64;
        let used = nanoseconds(self.pid)?
            .into_iter()
            .map(|(thread, after)| after.saturating_sub(self.threads.get(&thread).copied().unwrap_or(0)));
        Ok(used.map(move |used| used as f64 / passed).collect::<Vec<_>>().into_iter())
    }

    fn busiest_since(&self) -> Result<f64> {
        Ok(self.since()?.fold(0.0, f64::max))
    }

    fn total_since(&self) -> Result<f64> {
        Ok(self.since()?.sum())
    }
}

/// Time on a processor, per thread: the first field of `schedstat`.
fn nanoseconds(pid: u32) -> Result<HashMap<String, u64>> {
    let mut threads = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let spent = text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0);
        threads.insert(entry.file_name().to_string_lossy().into_owned(), spent);
    }
    Ok(threads)
}
