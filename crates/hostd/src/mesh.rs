// SPDX-License-Identifier: Apache-2.0
//! What the mesh should be: resources loaded, compiled and published as numbered snapshots.
//!
//! A load is all or nothing. Resources with a mistake are refused as a whole, the diagnostics are
//! kept for `meshctl status`, and the last good snapshot stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use api::Diagnostic;
use crossbeam_channel::{Receiver, Sender};
use model::{
    Action, BitRate, Directory, Generation, Inventory, Name, NoServices, PolicySet, Ranges, RuleId, Snapshot,
    Tenant, Vm, VmRef,
};
use notify::{RecursiveMode, Watcher};
use policy::CompiledPolicy;
use vswitch::SwitchConfig;

/// Quiet time after the last file event before a reload: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(20);
/// Longest wait for quiet: files that change all the time are read nevertheless.
const SETTLE_MAX: Duration = Duration::from_millis(200);

/// What is in force, and what was refused last.
#[derive(Clone, Debug)]
pub struct Published {
    /// What the switch works by.
    pub snapshot: Arc<Snapshot>,
    /// The same policy with its explanations.
    pub policy: Arc<CompiledPolicy>,
    /// When it came into force.
    pub since: Instant,
    /// Number of resources by kind.
    pub resources: BTreeMap<&'static str, usize>,
    /// What looks wrong in it, though it is valid.
    pub warnings: Arc<[policy::Warning]>,
    /// Mistakes of the last load, if it was refused; then everything above is of an earlier one.
    pub refused: Vec<Diagnostic>,
}

/// The published state and where it comes from.
#[derive(Debug)]
pub struct Mesh {
    /// Directory of the resources; without one there is nothing to load again.
    source: Option<PathBuf>,
    host: Host,
    published: RwLock<Published>,
}

/// What resources depend on of the host's settings.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where virtual addresses lie.
    pub ranges: Ranges,
    /// Of which machines can reserve parts.
    pub capacity: BitRate,
    /// Whether there is a collector of spans.
    pub takes_spans: bool,
}

/// The resources that the daemon was to start with have mistakes.
#[derive(Debug, thiserror::Error)]
#[error("resources in {source_dir:?} were refused:\n{}", list(.diagnostics))]
pub struct LoadError {
    source_dir: PathBuf,
    diagnostics: Vec<Diagnostic>,
}

impl Mesh {
    /// Loads the first snapshot.
    ///
    /// # Errors
    /// When there is any mistake: a daemon has no last good state to start from.
    pub fn load(source: PathBuf, host: Host) -> Result<Self, LoadError> {
        match load(&source, &host, Generation::default().next()) {
            Ok(published) => Ok(Self { source: Some(source), host, published: RwLock::new(published) }),
            Err(diagnostics) => Err(LoadError { source_dir: source, diagnostics }),
        }
    }

    /// A mesh of guests that are only looked into: no cards, no rules.
    ///
    /// # Errors
    /// When a guest is named twice.
    pub fn of_guests(guests: impl Iterator<Item = VmRef>) -> Result<Self, GuestsError> {
        let vms: Vec<Vm> = guests.map(|id| Vm { id, labels: BTreeMap::new(), nics: Vec::new() }).collect();
        let tenants: BTreeSet<&Name> = vms.iter().map(|vm| &vm.id.tenant).collect();
        let tenants =
            tenants.into_iter().map(|name| Tenant { name: name.clone(), default_action: Action::Deny });
        let resources = BTreeMap::from([("VirtualMachine", vms.len())]);
        let inventory = Inventory::new(tenants.collect(), vms)?;
        let (ranges, capacity) = (Ranges::default(), SwitchConfig::new(0).capacity);
        let host = Host { ranges, capacity, takes_spans: false };
        let parts = (inventory, &PolicySet::default(), Arc::new(NoServices) as Arc<dyn Directory>);
        let published = publish(Generation::default().next(), &host, parts, resources)?;
        Ok(Self { source: None, host, published: RwLock::new(published) })
    }

    /// Directory of the resources, if they are from one.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// Where all this is from, for people.
    pub fn source_name(&self) -> String {
        self.source().map_or_else(|| "--inspect".into(), |dir| dir.display().to_string())
    }

    /// What is in force now.
    pub fn published(&self) -> Published {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads again. Tells whether something new is in force.
    pub fn reload(&self) -> bool {
        let Some(source) = self.source() else { return false };
        let current = self.published();
        let loaded = load(source, &self.host, current.snapshot.generation.next());
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(fresh) => {
                tracing::info!(generation = %fresh.snapshot.generation, "resources loaded");
                *published = fresh;
                true
            }
            Err(diagnostics) => {
                for diagnostic in &diagnostics {
                    tracing::error!(%diagnostic, "resources refused, last good ones stay in force");
                }
                published.refused = diagnostics;
                false
            }
        }
    }
}

/// The guests that are to be looked into contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("the guests contradict each other")]
pub enum GuestsError {
    /// As machines.
    Inventory(#[from] model::InventoryError),
    /// As ends of rules.
    Policy(#[from] policy::CompileError),
}

fn load(source: &Path, host: &Host, generation: Generation) -> Result<Published, Vec<Diagnostic>> {
    let manifests = api::manifest::load(&[source.to_owned()])?;
    let resources = manifests.resources();
    let services =
        policy::catalogue(manifests.inventory(), manifests.policies(), &host.ranges).map_err(|error| {
            let refusal = manifests.refusal(error.service(), &error);
            vec![refusal.unwrap_or_else(|| contradiction(source, &error))]
        })?;
    let (inventory, policies) = manifests.into_parts();
    let reserved: u64 = inventory
        .vms()
        .filter_map(|(vm, _)| inventory.qos(vm).reservation)
        .map(BitRate::bits_per_second)
        .fold(0, u64::saturating_add);
    let capacity = host.capacity;
    if reserved > capacity.bits_per_second() {
        let error = format!(
            "machines reserve {reserved} bit/s together, more than this host's {capacity} \
             (`qos.capacity_mbit_per_second`)"
        );
        return Err(vec![contradiction(source, &error)]);
    }
    publish(generation, host, (inventory, &policies, Arc::new(services)), resources)
        .map_err(|error| vec![contradiction(source, &error)])
}

fn publish(
    generation: Generation,
    host: &Host,
    (inventory, policies, services): (Inventory, &PolicySet, Arc<dyn Directory>),
    resources: BTreeMap<&'static str, usize>,
) -> Result<Published, policy::CompileError> {
    let policy = Arc::new(policy::compile(&inventory, policies)?);
    let mut warnings = policy.warnings();
    if !host.takes_spans {
        let nowhere = |rule: &RuleId| policy::Warning::TracesNowhere { rule: rule.clone() };
        warnings.extend(policy.tracing().map(nowhere));
    }
    for warning in &warnings {
        tracing::warn!(%warning, "policy looks wrong");
    }
    let judge = Arc::clone(&policy) as Arc<dyn model::Judge>;
    let snapshot = Arc::new(Snapshot { generation, inventory, judge, services });
    let (warnings, since, refused) = (warnings.into(), Instant::now(), Vec::new());
    Ok(Published { snapshot, policy, since, resources, warnings, refused })
}

/// A mistake that is not of one place in one file.
fn contradiction(source: &Path, error: &dyn std::fmt::Display) -> Diagnostic {
    let (field, help) = (String::new(), String::new());
    Diagnostic { file: source.to_owned(), line: 0, column: 0, field, reason: error.to_string(), help }
}

fn list(diagnostics: &[Diagnostic]) -> String {
    let line = |diagnostic: &Diagnostic| match diagnostic.help.as_str() {
        "" => format!("  {diagnostic}"),
        help => format!("  {diagnostic} ({help})"),
    };
    diagnostics.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Watches a directory; each settled burst of changes sends one message.
///
/// # Errors
/// When the directory cannot be watched.
pub fn watch(dir: &Path) -> notify::Result<(impl Watcher + use<>, Receiver<()>)> {
    let (raised, changes) = crossbeam_channel::bounded(1);
    let (settled, reloads) = crossbeam_channel::bounded(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            // A full channel already says that something changed.
            let _ = raised.try_send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    std::thread::Builder::new().name("watch".into()).spawn(move || settle(&changes, &settled))?;
    Ok((watcher, reloads))
}

/// Passes one message on for each burst of messages, once it is quiet.
fn settle(changes: &Receiver<()>, settled: &Sender<()>) {
    while changes.recv().is_ok() {
        let end = Instant::now() + SETTLE_MAX;
        while changes.recv_deadline(end.min(Instant::now() + SETTLE)).is_ok() {}
        if settled.send(()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::scratch::Scratch;

    use super::*;

    const ONE_VM: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web, tenant: acme}
spec:
  nics:
  - {name: net0, socket: web.sock, mac: '02:00:00:00:00:01', addresses: [10.0.0.1/24]}
";

    fn mesh(yaml: &str) -> (Scratch, Result<Mesh, LoadError>) {
        let dir = Scratch::new("mesh").unwrap();
        std::fs::write(dir.join("mesh.yaml"), yaml).unwrap();
        let mesh = Mesh::load(dir.path().to_owned(), host(false));
        (dir, mesh)
    }

    fn host(takes_spans: bool) -> Host {
        Host { ranges: Ranges::default(), capacity: BitRate::new(1_000_000).unwrap(), takes_spans }
    }

    #[test]
    fn tracing_without_a_collector_is_warned_of() {
        const TRACING: &str = "\
---
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: slow, tenant: acme}
spec: {trace: {sample: 10%}}
";
        let (dir, mesh) = mesh(&format!("{ONE_VM}{TRACING}"));
        let warnings =
            |mesh: &Mesh| mesh.published().warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
        let told = warnings(&mesh.unwrap());
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("policy `acme/slow` traces flows, but "), "{told:?}");
        let mesh = Mesh::load(dir.path().to_owned(), host(true)).unwrap();
        assert!(warnings(&mesh).is_empty());
    }

    #[test]
    fn bad_file_is_refused_with_its_place_and_the_last_good_state_stays() {
        let (dir, mesh) = mesh(ONE_VM);
        let mesh = mesh.unwrap();
        let good = mesh.published();
        std::fs::write(dir.join("mesh.yaml"), ONE_VM.replace("10.0.0.1/24", "10.0.0.300/24")).unwrap();
        assert!(!mesh.reload());

        let after = mesh.published();
        assert!(Arc::ptr_eq(&after.snapshot, &good.snapshot), "the snapshot changed");
        let refused = &after.refused[0];
        assert_eq!((refused.line, refused.field.as_str()), (10, "spec.nics[0].addresses[0]"));

        std::fs::write(dir.join("mesh.yaml"), ONE_VM).unwrap();
        assert!(mesh.reload());
        let mended = mesh.published();
        assert_eq!(mended.snapshot.generation, good.snapshot.generation.next());
        assert!(mended.refused.is_empty());
    }

    #[test]
    fn no_more_can_be_reserved_than_there_is() {
        let reserving = |bits: u32| {
            ONE_VM.replace("spec:\n", &format!("spec:\n  qos: {{reservation: {{bitsPerSecond: {bits}}}}}\n"))
        };
        assert!(mesh(&reserving(1_000_000)).1.is_ok());
        let text = mesh(&reserving(1_000_001)).1.unwrap_err().to_string();
        assert!(text.contains("reserve 1000001 bit/s together"), "{text}");
    }

    #[test]
    fn daemon_does_not_start_on_resources_with_mistakes_and_says_where() {
        let (_dir, mesh) = mesh("apiVersion: meshvisor.dev/v1alpha1\nkind: Tenent\nmetadata: {name: acme}\n");
        let text = mesh.unwrap_err().to_string();
        assert!(text.contains("mesh.yaml:2:7: kind: "), "{text}");
    }

    #[test]
    fn burst_of_changes_is_one_reload() {
        let dir = Scratch::new("watch").unwrap();
        let (_watcher, reloads) = watch(dir.path()).unwrap();
        for number in 0..20 {
            std::fs::write(dir.join(format!("{number}.yaml")), "x").unwrap();
        }
        let wait = std::time::Duration::from_secs(5);
        assert!(reloads.recv_timeout(wait).is_ok(), "no reload");
        // What remains of the burst may settle once more, but not often.
        let more = std::iter::from_fn(|| reloads.recv_timeout(SETTLE_MAX + SETTLE).ok()).take(20).count();
        assert!(more <= 1, "{more} more reloads");
    }
}
