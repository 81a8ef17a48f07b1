// SPDX-License-Identifier: Apache-2.0
//! The command that says why.

use std::process::Command;

use anyhow::{Context, Result};
use testkit::daemon::Daemon;
use testkit::guests::shipped;

use crate::conversation::attempt;
use crate::shop::API;
use crate::{Report, Shop};

/// Asks about one allowed and one denied flow, for people and for programs.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    for (exe, verdict, rule) in [
        ("/usr/bin/storefront", "allow", "acme/storefront-to-api"),
        ("/usr/bin/intruder", "deny", "acme/default"),
    ] {
        attempt(shop.vm("acme/web"), &format!("in-service shop shop {exe}"), API)?;
        let question = ["why", "acme/web", API, "--exe", exe];
        let text = meshctl(&shop.daemon, &question)?;
        report.show(&text);
        let json = meshctl(&shop.daemon, &[&question[..], &["--output", "json"]].concat())?;
        let said: serde_json::Value = serde_json::from_str(&json).context("meshctl prints JSON")?;
        let generation = shop.policy()?.generation;
        let holds = said["verdict"] == verdict
            && said["decidedBy"] == rule
            && said["generation"] == generation
            && said["flow"]["source"]["process"]["exe"] == exe
            && said["flow"]["source"]["confidence"].is_string()
            && said["rules"].as_array().is_some_and(|rules| !rules.is_empty());
        let seen = if holds { format!("{verdict} by {rule}, generation {generation}") } else { json };
        report.claim(format!("it names {exe} with confidence, rules, generation and verdict"), holds, seen);
    }
    Ok(())
}

/// Runs the shipped `meshctl` against the daemon; returns what it printed.
pub(crate) fn meshctl(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let program = shipped("meshctl");
    let mut command = Command::new(&program);
    command.arg("--socket").arg(daemon.admin_socket()).args(arguments);
    let done = command.output().with_context(|| format!("start {}", program.display()))?;
    let errors = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "meshctl {arguments:?} ended with {}: {errors}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
