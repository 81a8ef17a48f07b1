// SPDX-License-Identifier: Apache-2.0
//! Resources from YAML files: the Kubernetes shape, `apiVersion: meshvisor.dev/v1alpha1`.
//!
//! A load goes through three steps, and every step notes all mistakes it can see before the load
//! is refused: text into trees with places (`tree`), trees into typed resources (`fields`,
//! `resources`, `selectors`), and resources against each other (`registry`).
//!
//! Limits: [`FILES_MAX`] files of [`FILE_BYTES_MAX`], [`RESOURCES_MAX`] resources; each list within
//! a resource has a bound of its own, named where it is read.

mod access_policies;
mod fields;
mod flow_policies;
mod networks;
mod qos;
mod registry;
mod resources;
mod selectors;
mod services;
mod source;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

use model::{Inventory, PolicySet, RuleId};

use self::fields::{Field, Place, Report};
use self::resources::Resources;
pub use self::source::{FILE_BYTES_MAX, FILES_MAX, Source};
use crate::Diagnostic;

/// The version that every document must carry.
pub const API_VERSION: &str = "meshvisor.dev/v1alpha1";

/// Most resources in one load.
pub const RESOURCES_MAX: usize = 131_072;

/// Everything that a load has read, free of contradictions and of names that lead nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifests {
    inventory: Inventory,
    policies: PolicySet,
    /// Where each service is defined.
    services: BTreeMap<RuleId, Diagnostic>,
}

impl Manifests {
    /// What exists.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Who may talk to whom.
    #[must_use]
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Number of resources by kind; kinds without any are left out.
    #[must_use]
    pub fn resources(&self) -> BTreeMap<&'static str, usize> {
        let counts = [
            ("Tenant", self.inventory.tenants().len()),
            ("VirtualMachine", self.inventory.vms().count()),
            ("Application", self.policies.applications.len()),
            ("Service", self.policies.services.len()),
            ("AccessPolicy", self.policies.policies.len()),
            ("FlowPolicy", self.policies.flow_policies.len()),
            ("ExternalNetwork", self.inventory.networks().len()),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// That something is wrong with a service, at the place that defines it; `None` if nothing here does.
    #[must_use]
    pub fn refusal(&self, service: &RuleId, reason: &dyn Display) -> Option<Diagnostic> {
        let place = self.services.get(service)?;
        Some(Diagnostic { reason: reason.to_string(), ..place.clone() })
    }

    /// Both parts.
    #[must_use]
    pub fn into_parts(self) -> (Inventory, PolicySet) {
        (self.inventory, self.policies)
    }
}

/// Loads files and directories. Of a directory, its own `*.yaml` and `*.yml` files are read in the
/// order of their names; hidden ones are left out.
///
/// # Errors
/// All mistakes found, in the order of files and lines; never empty.
pub fn load(paths: &[PathBuf]) -> Result<Manifests, Vec<Diagnostic>> {
    let report = Report::default();
    let sources = source::read(paths, &report);
    read(&sources, report)
}

/// Loads texts that were read elsewhere. Unlike [`load`], it takes their sizes as they are.
///
/// # Errors
/// As [`load`].
pub fn load_sources(sources: &[Source]) -> Result<Manifests, Vec<Diagnostic>> {
    read(sources, Report::default())
}

fn read(sources: &[Source], report: Report) -> Result<Manifests, Vec<Diagnostic>> {
    let trees: Vec<_> = sources.iter().map(|source| (source, tree::documents(&source.text))).collect();
    let manifests = assemble(&trees, &report);
    let diagnostics = report.into_diagnostics();
    match manifests {
        Some(manifests) if diagnostics.is_empty() => Ok(manifests),
        _ => Err(diagnostics),
    }
}

/// Reads all trees into resources; `None` with at least one note if that failed as a whole.
fn assemble(
    trees: &[(&Source, Vec<Result<tree::Node, tree::Malformed>>)],
    report: &Report,
) -> Option<Manifests> {
    let mut resources = Resources::new(report);
    let mut count = 0_usize;
    for (source, documents) in trees {
        for document in documents {
            let at = document.as_ref().map_or_else(|malformed| malformed.at, |node| node.at);
            let place = Place { file: &source.file, at, field: String::new() };
            count += 1;
            if count > RESOURCES_MAX {
                let help = format!("use at most {RESOURCES_MAX}");
                report.note(&place, "more resources than one load can hold".to_owned(), help);
                return None;
            }
            match document {
                Ok(node) => resources.read(&Field::root(report, &source.file, node)),
                Err(malformed) => {
                    report.note(&place, malformed.reason.clone(), String::new());
                    resources.miss();
                }
            }
        }
    }
    resources.finish()
}
