// SPDX-License-Identifier: Apache-2.0
//! Compares who depends on whom with the table of ARCHITECTURE.md: an edge that is not in it fails.
//!
//! Adding an edge is a decision about the architecture: change the table here and the one in ARCHITECTURE.md in
//! one commit, and say why.

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use super::tally::Tally;
use crate::repository;

/// A crate and the crates of this workspace that it may use.
type Row = (&'static str, &'static [&'static str]);

/// What each crate may use in production.
const ALLOWED: [Row; 16] = [
    ("model", &[]),
    ("platform", &[]),
    ("telemetry", &[]),
    ("packet", &["model"]),
    ("vswitch", &["model", "packet"]),
    ("vmi", &["model"]),
    ("policy", &["model"]),
    ("ipfix", &["model"]),
    ("vhost-port", &["model", "platform"]),
    ("api", &["model"]),
    (
        "hostd",
        &[
            "api",
            "ipfix",
            "model",
            "packet",
            "platform",
            "policy",
            "telemetry",
            "vhost-port",
            "vmi",
            "vswitch",
        ],
    ),
    ("meshctl", &["api", "model", "policy"]),
    ("testkit", &["api", "model", "packet"]),
    ("e2e", &["api", "model", "packet", "testkit", "vhost-port"]),
    ("xtask", &["api", "e2e", "model", "testkit"]),
    ("bench", &["api", "model", "packet", "policy", "vhost-port", "vmi", "vswitch", "testkit"]),
];
/// What tests of a crate may use beyond that.
const ALLOWED_IN_TESTS: [Row; 2] = [("hostd", &["testkit"]), ("vswitch", &["testkit"])];

/// Fails on any edge between our crates that the tables do not hold.
pub fn check() -> Result<Tally> {
    let manifest = repository().join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec();
    let metadata = metadata.context("ask cargo about the workspace")?;
    let mut edges = Vec::new();
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let in_tests = dependency.kind == DependencyKind::Development;
            edges.push((package.name.to_string(), dependency.name.clone(), in_tests));
        }
    }
    let names: Vec<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let problems = problems(&names, &edges);
    if !problems.is_empty() {
        bail!("not in the table of ARCHITECTURE.md:\n  {}", problems.join("\n  "));
    }
    Ok(Tally::passed(1))
}

/// What is wrong with the crates and their edges (from, to, in tests only).
fn problems(names: &[String], edges: &[(String, String, bool)]) -> Vec<String> {
    let unknown = names.iter().filter(|name| row(&ALLOWED, name).is_none());
    let mut problems: Vec<String> = unknown.map(|name| format!("crate {name}")).collect();
    for (from, to, in_tests) in edges {
        let allowed = |table| row(table, from).is_some_and(|uses| uses.contains(&to.as_str()));
        if !(allowed(&ALLOWED[..]) || *in_tests && allowed(&ALLOWED_IN_TESTS[..])) {
            problems.push(format!("{from} uses {to}{}", if *in_tests { " in its tests" } else { "" }));
        }
    }
    problems
}

fn row(table: &[Row], name: &str) -> Option<&'static [&'static str]> {
    table.iter().find(|(from, _)| *from == name).map(|(_, uses)| *uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_edges_of_the_table_pass() {
        let edge = |from: &str, to: &str, in_tests| (from.to_owned(), to.to_owned(), in_tests);
        for (edge, wrong) in [
            (edge("vswitch", "packet", false), false),
            (edge("packet", "vswitch", false), true),
            (edge("vswitch", "vhost-port", false), true),
            (edge("hostd", "testkit", true), false),
            (edge("hostd", "testkit", false), true),
            (edge("stranger", "model", false), true),
        ] {
            assert_eq!(!problems(&[], std::slice::from_ref(&edge)).is_empty(), wrong, "{edge:?}");
        }
    }

    #[test]
    fn a_crate_nobody_placed_is_reported() {
        assert_eq!(problems(&["model".into(), "util".into()], &[]), ["crate util"]);
    }

    #[test]
    fn the_table_has_no_cycle() {
        // Each crate comes after those it uses, once those without a place yet are put aside.
        let mut placed: Vec<&str> = Vec::new();
        while placed.len() < ALLOWED.len() {
            let free = ALLOWED
                .iter()
                .find(|(name, uses)| !placed.contains(name) && uses.iter().all(|used| placed.contains(used)));
            placed.push(free.expect("a crate whose uses are all placed").0);
        }
    }
}
