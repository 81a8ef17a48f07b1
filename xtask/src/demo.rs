// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask demo`: from nothing to a mesh under four real virtual machines, and its story.
//!
//! Nothing is left behind however it ends: machines and daemon live in a folder of their own and die with us.

use std::io::{BufRead, IsTerminal, stdin};
use std::process::exit;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::story::STORY;
use e2e::{Report, Shop};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use testkit::accel;
use testkit::guests::shipped;

use crate::{guests, packages, shell, test};

/// Tells the story; then stays up unless `once`.
pub fn run(once: bool, no_install: bool) -> Result<()> {
    end_with_signals()?;
    println!("Preparing");
    packages::require(&packages::GUESTS, !no_install)?;
    guests::build(false)?;
    shell::show(&mut test::shipped())?;
    let accelerator = accel::choose()?;
    println!("  {}", accelerator.reason);

    println!("\nBooting four virtual machines under meshvisor-hostd");
    let started = Instant::now();
    let mut shop = Shop::open(accelerator.accel)?;
    println!("   all up after {:.1} s", started.elapsed().as_secs_f64());

    let mut report = Report::default();
    for (index, chapter) in STORY.iter().enumerate() {
        report.chapter(index + 1, chapter, &mut shop);
    }
    println!("\nThe story took {:.0} s\n", started.elapsed().as_secs_f64());
    if report.failed > 0 {
        println!("{}\n", shop.reports());
    }
    println!("{} passed, {} failed", report.passed, report.failed);
    if !once {
        stay(&shop)?;
    }
    if report.failed > 0 {
        bail!("{} claims did not hold", report.failed);
    }
    Ok(())
}

/// Leaves everything running until told to stop.
fn stay(shop: &Shop) -> Result<()> {
    let meshctl =
        format!("{} --socket {}", shipped("meshctl").display(), shop.daemon.admin_socket().display());
    println!("\nThe machines stay up. In another terminal:\n");
    println!("  alias meshctl='{meshctl}'");
    for (command, what) in [
        ("meshctl vm list", "who is connected, which kernels are understood"),
        ("meshctl vm ps acme/web", "processes, read from RAM"),
        ("meshctl vm ss acme/api", "sockets and their owners"),
        ("meshctl flow list", "flows and who decided"),
        ("meshctl why acme/web 10.0.0.12:8080 --exe /usr/bin/intruder", "why a flow is refused"),
    ] {
        println!("  {command:<62} # {what}");
    }
    println!("\nEdit the rules in {} and ask again.", shop.manifests().display());
    if stdin().is_terminal() {
        println!("\nPress Enter or Ctrl-C to end.");
        stdin().lock().read_line(&mut String::new()).context("wait for Enter")?;
    } else {
        println!("\nSend SIGINT or SIGTERM to process {} to end.", std::process::id());
        loop {
            thread::park_timeout(Duration::MAX);
        }
    }
    Ok(())
}

/// On Ctrl-C and the like: ends and removes everything, whatever the rest of the program is doing.
pub fn end_with_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listen for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            println!("\nEnding");
            testkit::abandon();
            // As a shell counts: 128 and the signal's number.
            exit(128 + signal);
        }
    });
    Ok(())
}
