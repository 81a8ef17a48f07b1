// SPDX-License-Identifier: Apache-2.0
//! What was found wrong in a guest's kernel.

use api::admin::{Certainty, Threats};

use super::{Grid, Style, Tone, maybe, plain, plural, span};

/// Findings, and how much has been looked at.
pub(crate) fn threats(threats: &Threats, style: Style) -> String {
    let mut grid = Grid::new(style, &["CERTAINTY", "KIND", "SEEN", "WHERE", "EVIDENCE"], &[]);
    for finding in &threats.findings {
        let tone = match finding.certainty {
            Certainty::Certain => Tone::Bad,
            Certainty::Likely | Certainty::Possible => Tone::Notice,
        };
        grid.row(vec![
            (finding.certainty.as_str().to_owned(), tone),
            plain(&finding.kind),
            plain(format!("{} ago", span(finding.last_seen_ms))),
            maybe(finding.symbol.as_ref().or(finding.address.as_ref())),
            plain(&finding.evidence),
        ]);
    }
    let found = grid.finish("no threats were found");
    let looked = if threats.views == 0 {
        "not inspected yet".to_owned()
    } else {
        format!(
            "{} compared, {} of {} checked in {}",
            plural(threats.views, "view"),
            threats.pages_known,
            plural(threats.pages, "page"),
            plural(threats.rounds, "round")
        )
    };
    format!("{found}\n{looked}\n")
}

#[cfg(test)]
mod tests {
    use api::admin::Threat;

    use super::*;

    #[test]
    fn findings_are_shown_with_what_was_looked_at() {
        let none = threats(&Threats::default(), Style::default());
        assert_eq!(none, "no threats were found\n\nnot inspected yet\n");
        let finding = Threat {
            kind: "hidden-task".into(),
            certainty: Certainty::Certain,
            address: Some("0xffff888001234000".into()),
            symbol: None,
            evidence: "process 7 `a\u{1b}b` has a process id but is not in the list of tasks".into(),
            first_seen_ms: 5000,
            last_seen_ms: 400,
        };
        let all = Threats { findings: vec![finding], pages: 10, pages_known: 9, rounds: 0, views: 3 };
        let shown = threats(&all, Style::default());
        let expected = "certain    hidden-task  400ms ago  0xffff888001234000  process 7 `a\\x1bb` has";
        assert!(shown.contains(expected), "{shown}");
        assert!(shown.ends_with("3 views compared, 9 of 10 pages checked in 0 rounds\n"), "{shown}");
    }
}
