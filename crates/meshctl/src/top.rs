// SPDX-License-Identifier: Apache-2.0
//! `vm top`: what a machine's processors did between two samples, once or on a screen that is redrawn.
//!
//! The screen is the terminal's alternate one, its keys come one by one; both are as before when this ends, by
//! `q` or by failure.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use api::admin::{Client, ClientError, CpuSample, Request, Response};
use model::VmRef;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::output::Output;
use crate::render::{self, Style};
use crate::usage::Usage;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// Rows of a screen that does not say how high it is.
const ROWS: usize = 24;

/// Prints one span, or redraws the screen for each until `q` is pressed.
pub(crate) fn run(
    client: &mut Client,
    vm: &VmRef,
    once: bool,
    by_thread: bool,
    output: &Output,
) -> anyhow::Result<()> {
    let mut before = sample(client, vm)?;
    if once || output.is_json() || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        std::thread::sleep(INTERVAL);
        let after = sample(client, vm)?;
        return output.print(&Usage::between(&before, &after, by_thread), |usage, style| {
            render::top(usage, style, None)
        });
    }
    let screen = Screen::open()?;
    loop {
        if screen.wants_to_quit(INTERVAL)? {
            return Ok(());
        }
        let after = sample(client, vm)?;
        screen.draw(&Usage::between(&before, &after, by_thread), output.style())?;
        before = after;
    }
}

fn sample(client: &mut Client, vm: &VmRef) -> Result<CpuSample, ClientError> {
    match client.call(&Request::VmCpu { vm: vm.to_string() })? {
        Response::Cpu(sample) => Ok(*sample),
        _ => Err(ClientError::Unexpected { expected: "processor times" }),
    }
}

/// The terminal's alternate screen, with keys as they are pressed.
struct Screen {
    before: Termios,
}

impl Screen {
    fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        // From here on, whatever happens puts the terminal back.
        let screen = Self { before };
        let mut out = io::stdout();
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[H\x1b[2Jwatching for a second, `q` quits")?;
        out.flush()?;
        Ok(screen)
    }

    fn draw(&self, usage: &Usage, style: Style) -> io::Result<()> {
        let rows = tcgetwinsize(io::stdout()).map_or(ROWS, |size| usize::from(size.ws_row));
        let text = render::top(usage, style, Some(rows));
        let mut out = io::stdout().lock();
        out.write_all(b"\x1b[H")?;
        for line in text.lines().take(rows.saturating_sub(1)) {
            write!(out, "{line}\x1b[K\r\n")?;
        }
        out.write_all(b"\x1b[J")?;
        out.flush()
    }

    /// Whether a key that quits is pressed within the time: `q`, or what ends programs elsewhere. Any other key
    /// ends the wait.
    fn wants_to_quit(&self, within: Duration) -> io::Result<bool> {
        let stdin = io::stdin();
        let limit = Timespec::try_from(within).map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut ready, Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut keys = [0; 16];
        let len = rustix::io::read(&stdin, &mut keys)?;
        // No key at all: the terminal is gone.
        Ok(len == 0 || keys[..len].iter().any(|key| matches!(key, b'q' | b'Q' | 3 | 4)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing is left to do about a terminal that cannot be put back.
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
