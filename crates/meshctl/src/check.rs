// SPDX-License-Identifier: Apache-2.0
//! `policy check`: what the daemon would say about manifests, without a daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::{Diagnostic, manifest};
use serde::Serialize;

use crate::output::Output;
use crate::render::{Style, diagnostics, plural};
use crate::text::visible_sentence;

/// What was found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    /// Whether a daemon would take it.
    ok: bool,
    /// Number of resources by kind.
    resources: BTreeMap<&'static str, usize>,
    /// Why a daemon would refuse it.
    errors: Vec<Diagnostic>,
    /// What looks wrong, though a daemon would take it.
    warnings: Vec<String>,
    /// What takes more than the manifests.
    notes: Vec<String>,
}

/// Checks and prints; true if a daemon would take the manifests.
pub(crate) fn run(paths: &[PathBuf], output: &Output) -> anyhow::Result<bool> {
    let checked = check(paths)?;
    output.print(&checked, render)?;
    Ok(checked.ok)
}

fn check(paths: &[PathBuf]) -> anyhow::Result<Checked> {
    let manifests = match manifest::load(paths) {
        Ok(manifests) => manifests,
        Err(errors) => return Ok(Checked { errors, ..Checked::default() }),
    };
    let compiled = policy::compile(manifests.inventory(), manifests.policies())?;
    // The ranges are the daemon's settings; contradictions do not depend on them.
    let ranges = model::Ranges::default();
    if let Err(error) = policy::catalogue(manifests.inventory(), manifests.policies(), &ranges) {
        let refusal = manifests.refusal(error.service(), &error).ok_or(error)?;
        return Ok(Checked { errors: vec![refusal], ..Checked::default() });
    }
    Ok(Checked {
        ok: true,
        resources: manifests.resources(),
        errors: Vec::new(),
        warnings: compiled.warnings().iter().map(ToString::to_string).collect(),
        notes: compiled.tracing().map(needs_collector).collect(),
    })
}

/// The daemon's settings are not known here.
fn needs_collector(rule: &model::RuleId) -> String {
    format!(
        "policy `{rule}` traces flows: that takes a collector in the daemon's settings (`traces.endpoint`)"
    )
}

fn render(checked: &Checked, style: Style) -> String {
    if !checked.ok {
        let count = plural(checked.errors.len() as u64, "error");
        return format!("{}{}: {count}\n", diagnostics(&checked.errors, style), style.bad("refused"));
    }
    let mut shown = String::new();
    for warning in &checked.warnings {
        shown.push_str(&format!("{}: {}\n", style.notice("warning"), visible_sentence(warning)));
    }
    for note in &checked.notes {
        shown.push_str(&format!("note: {}\n", visible_sentence(note)));
    }
    let resources: Vec<String> =
        checked.resources.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let resources = if resources.is_empty() { "no resources".to_owned() } else { resources.join(", ") };
    let warnings = match checked.warnings.len() {
        0 => String::new(),
        count => format!("; {}", plural(count as u64, "warning")),
    };
    shown + &format!("{}: {resources}{warnings}\n", style.good("ok"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn examples() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop")
    }

    #[test]
    fn shop_example_is_taken_without_warnings() {
        let checked = check(&[examples()]).unwrap();
        assert!(checked.ok && checked.warnings.is_empty(), "{checked:?}");
        assert_eq!(
            render(&checked, Style::default()),
            "ok: 3 AccessPolicy, 1 Application, 2 Service, 2 Tenant, 4 VirtualMachine\n"
        );
    }

    #[test]
    fn refusal_shows_each_mistake_with_its_place_and_help() {
        let checked = Checked {
            errors: vec![Diagnostic {
                file: "mesh.yaml".into(),
                line: 3,
                column: 18,
                field: "metadata.name".into(),
                reason: "`A` is not a name".into(),
                help: "use a to z".into(),
            }],
            ..Checked::default()
        };
        assert_eq!(
            render(&checked, Style::default()),
            "mesh.yaml:3:18: metadata.name: `A` is not a name\n  help: use a to z\nrefused: 1 error\n"
        );
    }

    #[test]
    fn what_traces_is_noted_and_no_warning() {
        let file = std::env::temp_dir().join(format!("meshvisor-check-{}.yaml", std::process::id()));
        let manifest = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web, tenant: acme}
spec: {nics: [{name: net0, socket: web.sock, mac: '02:00:00:00:00:01', addresses: [10.0.0.1/24]}]}
---
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: slow, tenant: acme}
spec: {trace: {sample: 10%}}
";
        std::fs::write(&file, manifest).unwrap();
        let checked = check(std::slice::from_ref(&file));
        std::fs::remove_file(file).unwrap();
        let checked = checked.unwrap();
        assert!(checked.ok && checked.warnings.is_empty(), "{checked:?}");
        let shown = render(&checked, Style::default());
        assert!(shown.starts_with("note: policy `acme/slow` traces flows: "), "{shown}");
    }

    #[test]
    fn missing_directory_is_refused_and_not_a_crash() {
        let checked = check(&[examples().join("absent")]).unwrap();
        assert!(!checked.ok && checked.errors[0].reason.contains("cannot be read"));
    }

    #[test]
    fn warnings_do_not_refuse() {
        let checked = Checked {
            ok: true,
            warnings: vec!["policy `a/b`: `from[0]` selects no virtual machine".into()],
            ..Checked::default()
        };
        assert_eq!(
            render(&checked, Style::default()),
            "warning: policy `a/b`: `from[0]` selects no virtual machine\nok: no resources; 1 warning\n"
        );
    }
}
