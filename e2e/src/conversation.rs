// SPDX-License-Identifier: Apache-2.0
//! Connections that programs in the guests open, and what became of them in the guests' own words.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::vm::Vm;

use crate::Shop;
use crate::shop::START_LIMIT;

/// A refusal that comes later than this was not for the first SYN: the guest sends a second one after 1 s.
const FIRST_SYN_LIMIT_US: u64 = 900_000;

/// Time for a stream to say its last line.
const END_LIMIT: Duration = Duration::from_secs(30);

/// The storefront and the order service, as they run in their units.
pub(crate) const STOREFRONT: &str = "in-service shop shop /usr/bin/storefront";
pub(crate) const ORDERS: &str = "in-service orders orders /usr/bin/orders";

/// How a connection attempt ended, in the guest's words.
pub(crate) struct Attempt {
    line: String,
}

/// Has `program` in a guest open a connection.
pub(crate) fn attempt(vm: &Vm, program: &str, to: &str) -> Result<Attempt> {
    let output = vm.run(&format!("{program} connect {to}"))?;
    Ok(Attempt { line: output.stdout.lines().last().unwrap_or_default().to_owned() })
}

/// How many connections were opened, by what a program printed.
pub(crate) fn connections(printed: &str) -> usize {
    printed.lines().filter(|line| line.starts_with("connected ")).count()
}

impl Attempt {
    /// It was connected.
    pub(crate) fn connected(&self) -> Result<String> {
        if !self.line.starts_with("connected ") {
            bail!("the guest says `{}`", self.line);
        }
        Ok(format!("after {}", self.after()?))
    }

    /// It was refused before a second SYN could be sent.
    pub(crate) fn refused_at_once(&self) -> Result<String> {
        if !self.line.starts_with("refused ") || self.after_us()? > FIRST_SYN_LIMIT_US {
            bail!("the guest says `{}`", self.line);
        }
        Ok(format!("reset after {}", self.after()?))
    }

    /// It came to nothing, in whatever way.
    pub(crate) fn not_connected(&self) -> Result<String> {
        let word = self.line.split(' ').next().unwrap_or_default();
        if !["refused", "timed-out", "unreachable", "reset"].contains(&word) {
            bail!("the guest says `{}`", self.line);
        }
        Ok(word.to_owned())
    }

    fn after_us(&self) -> Result<u64> {
        let word = self.line.split(' ').find_map(|word| word.strip_prefix("after_us="));
        Ok(word.context("the guest says how long it took")?.parse()?)
    }

    fn after(&self) -> Result<String> {
        let us = self.after_us()?;
        Ok(format!("{}.{:01} ms", us / 1_000, us % 1_000 / 100))
    }
}

/// A conversation that sends a numbered line every 10 ms and checks each echo.
#[derive(Debug)]
pub(crate) struct Stream {
    machine: &'static str,
    name: &'static str,
    pid: u32,
}

impl Stream {
    /// Starts one and waits for the first echo.
    pub(crate) fn start(
        shop: &Shop,
        machine: &'static str,
        name: &'static str,
        program: &str,
        to: &str,
    ) -> Result<Self> {
        let vm = shop.vm(machine);
        let stop = stop_file(name);
        vm.expect(&format!("rm -f {stop}"))?;
        let pid = vm.background(name, &format!("{program} stream {to} {stop}"))?;
        vm.await_line(name, "streaming", START_LIMIT)?;
        Ok(Self { machine, name, pid })
    }

    /// Waits until it ends by itself; returns its last line.
    pub(crate) fn await_end(&self, shop: &Shop, limit: Duration) -> Result<String> {
        let printed = shop.vm(self.machine).await_end(self.name, self.pid, limit)?;
        Ok(printed.lines().last().unwrap_or_default().to_owned())
    }

    /// Asks it to end. It must not have lost a line; returns how many there were and the longest pause.
    pub(crate) fn finish(&self, shop: &Shop) -> Result<String> {
        shop.vm(self.machine).expect(&format!("touch {}", stop_file(self.name)))?;
        let last = self.await_end(shop, END_LIMIT)?;
        let number =
            |name: &str| last.split(' ').find_map(|word| word.strip_prefix(name)).unwrap_or_default();
        let (sent, echoed) = (number("sent="), number("echoed="));
        if !last.starts_with("done ") || sent != echoed || sent == "0" {
            bail!("the guest says `{last}`");
        }
        Ok(format!("{sent} lines, longest pause {} ms", number("longest_gap_ms=")))
    }
}

fn stop_file(name: &str) -> String {
    format!("/tmp/{name}.stop")
}
