// SPDX-License-Identifier: Apache-2.0
//! `why`, as a story: the verdict, who is at both ends, each rule, and what decided.

use api::admin::{
    Confidence, EndpointStatus, ExplainedRule, Explanation, Flow, FlowService, Mode, Party, Process, Verdict,
};

use super::flow::{end, protocol};
use super::services::{state, waiting};
use super::{Style, plural, span, word};
use crate::text::{visible, visible_sentence};

/// Where the second column starts.
const LABEL_WIDTH: usize = 13;

/// The whole story.
pub(crate) fn explanation(explanation: &Explanation, style: Style) -> String {
    let mut story = Story { shown: String::new(), style };
    story.headline(explanation);
    if let Some(flow) = &explanation.flow {
        story.gap();
        story.party("source", &flow.source);
        story.party("destination", &flow.destination);
    }
    story.gap();
    story.rules(&explanation.rules);
    story.gap();
    story.services(&explanation.services);
    story.endpoints(&explanation.endpoints);
    story.verdict(explanation);
    story.shown
}

struct Story {
    shown: String,
    style: Style,
}

impl Story {
    fn gap(&mut self) {
        self.shown.push('\n');
    }

    /// A label and what it is about. `text` is fit to be shown.
    fn line(&mut self, label: &str, text: &str) {
        let line = format!("{label:<LABEL_WIDTH$}{text}");
        self.shown.push_str(line.trim_end());
        self.shown.push('\n');
    }

    fn headline(&mut self, explanation: &Explanation) {
        let verdict = paint(self.style, explanation.verdict);
        let Some(flow) = &explanation.flow else {
            self.shown
                .push_str(&format!("{verdict}  no such flow has been seen; this is what one would meet\n"));
            return;
        };
        let ends = format!("{} -> {}", visible(&end(&flow.source)), visible(&end(&flow.destination)));
        self.shown.push_str(&format!("{verdict}  {} {ends}\n", visible(&protocol(flow))));
        let seen = if explanation.hypothetical {
            "not seen like this: the verdict is what such a flow would meet".to_owned()
        } else {
            let outcome = flow.reason.as_ref().map(|reason| format!(", dropped: {}", visible(reason)));
            format!(
                "seen {} ago, {}, {}{}",
                span(flow.last_seen_ms),
                plural(flow.packets, "packet"),
                visible(&flow.state),
                outcome.unwrap_or_default()
            )
        };
        self.shown.push_str(&seen);
        self.shown.push('\n');
        self.outdated(explanation, flow);
    }

    /// Says so when the flow was judged by an older policy than the story tells.
    fn outdated(&mut self, explanation: &Explanation, flow: &Flow) {
        if !explanation.hypothetical && flow.generation != explanation.generation {
            self.shown.push_str(&format!(
                "judged at generation {} as {}, by {}\n",
                flow.generation,
                paint(self.style, flow.verdict),
                visible(&flow.decided_by)
            ));
        }
    }

    fn party(&mut self, label: &str, party: &Party) {
        let vm = party.vm.as_deref().unwrap_or("no machine of this host");
        self.line(label, &self.style.strong(&visible(vm)));
        match (&party.process, party.confidence) {
            (Some(process), _) => self.process(process),
            (None, None) => self.line("  process", "not asked for: no rule that could apply needs it"),
            (None, Some(_)) => {
                let reason = party.unknown.map(|reason| format!(": {}", word(&reason))).unwrap_or_default();
                self.line("  process", &self.style.notice(&format!("unknown{reason}")));
                if let Some(user) = user(party.user.as_deref(), party.uid) {
                    let netns = party.netns.map(|inode| format!(", in network namespace {inode}"));
                    self.line("", &format!("its socket belongs to {user}{}", netns.unwrap_or_default()));
                }
            }
        }
        if let Some(inner) = party.inner {
            self.line("  inside", &format!("{inner}: the machine translates it"));
        }
        if let Some(confidence) = party.confidence {
            self.line("  confidence", &format!("{}: {}", word(&confidence), meaning(confidence)));
        }
    }

    fn process(&mut self, process: &Process) {
        let exe = process.exe.as_deref().unwrap_or(&process.name);
        let user = user(process.user.as_deref(), process.uid);
        let user = user.map(|user| format!(", {user}")).unwrap_or_default();
        let unit = process.unit.as_ref().map(|unit| format!(", unit {}", visible(unit))).unwrap_or_default();
        let facts = format!("{} ({}, pid {}{user}{unit})", visible(exe), visible(&process.name), process.pid);
        self.line("  process", &facts);
    }

    fn rules(&mut self, rules: &[ExplainedRule]) {
        if rules.is_empty() {
            self.line("rules", "the tenant has none that could apply");
            return;
        }
        self.line("rules", "");
        for rule in rules {
            let mark = if rule.matched { self.style.strong("match   ") } else { "no match".to_owned() };
            self.shown.push_str(&format!("  {mark}  {} ({})\n", visible(&rule.rule), nature(rule)));
            self.shown.push_str(&format!("            {}\n", visible_sentence(&rule.why)));
        }
    }

    fn services(&mut self, services: &[FlowService]) {
        if services.is_empty() {
            return;
        }
        self.line("services", "");
        for FlowService { service, rule, level, order } in services {
            let place = level.as_ref().zip(*order);
            let place = place.map(|(level, order)| format!(" ({}, order {order})", visible(level)));
            let by = format!("by {}{}", visible(rule), place.unwrap_or_default());
            self.line(&format!("  {}", visible(service)), &by);
        }
        self.gap();
    }

    fn endpoints(&mut self, endpoints: &[EndpointStatus]) {
        if endpoints.is_empty() {
            return;
        }
        self.line("endpoints", "");
        for endpoint in endpoints {
            let waiting = waiting(endpoint).map(|waiting| format!(", {waiting} wait to be accepted"));
            let flows = plural(endpoint.flows.into(), "flow");
            let facts = format!("{} ({flows}{})", visible(&state(endpoint)), waiting.unwrap_or_default());
            self.line(&format!("  {}", visible(&endpoint.vm)), &format!("  {facts}"));
        }
        self.gap();
    }

    fn verdict(&mut self, explanation: &Explanation) {
        let by = visible(&explanation.decided_by);
        let because = explanation.because.as_ref();
        let because = because.map(|because| format!(", because {}", visible_sentence(because)));
        let how = if by.ends_with("/default") {
            ", because no enforced rule matches"
        } else if by.ends_with("/(isolation)") {
            ", because tenants never reach each other"
        } else {
            ""
        };
        let verdict = paint(self.style, explanation.verdict);
        let how = because.as_deref().unwrap_or(how);
        self.line("verdict", &format!("{verdict} by {by} at generation {}{how}", explanation.generation));
    }
}

/// What a rule does, and where it stands among others.
fn nature(rule: &ExplainedRule) -> String {
    let place = rule.order.map(|order| format!("{}, order {order}: ", visible(&rule.level)));
    let adds = (!rule.adds.is_empty()).then(|| format!("adds {}", visible(&rule.adds.join(", "))));
    let does: Vec<String> = rule.action.iter().map(word).chain(adds).collect();
    let mode = if rule.mode == Mode::Audit { ", audit only" } else { "" };
    format!("{}{}{mode}", place.unwrap_or_default(), does.join(", "))
}

fn paint(style: Style, verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow => style.good("allow"),
        Verdict::Deny => style.bad("deny"),
    }
}

/// A user in words.
fn user(name: Option<&str>, uid: Option<u32>) -> Option<String> {
    match (name, uid) {
        (Some(name), Some(uid)) => Some(format!("user {} (uid {uid})", visible(name))),
        (Some(name), None) => Some(format!("user {}", visible(name))),
        (None, uid) => uid.map(|uid| format!("uid {uid}")),
    }
}

/// What a confidence rests on.
fn meaning(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Unknown => "nothing is known beyond the machine",
        Confidence::Socket => "the socket is known, its process is not",
        Confidence::Table => "found through the guest's socket and descriptor tables",
        Confidence::Descriptor => "reached from the very descriptor that carried the frame",
    }
}

#[cfg(test)]
mod tests {
    use api::admin::UnknownReason;

    use super::super::flow::tests::storefront;
    use super::*;

    fn rule(rule: &str, mode: Mode, matched: bool, why: &str) -> ExplainedRule {
        ExplainedRule {
            rule: rule.into(),
            level: "tenant".into(),
            order: None,
            action: Some(Verdict::Allow),
            adds: vec![],
            mode,
            matched,
            why: why.into(),
        }
    }

    fn allowed() -> Explanation {
        Explanation {
            flow: Some(storefront()),
            hypothetical: false,
            rules: vec![
                ExplainedRule {
                    level: "infrastructure".into(),
                    order: Some(10),
                    action: None,
                    adds: vec!["mirror".into()],
                    ..rule("infra/watch", Mode::Enforce, true, "source VM acme/web is selected")
                },
                rule("acme/storefront-to-api", Mode::Enforce, true, "source VM acme/web is selected"),
                rule("acme/no-root", Mode::Audit, false, "source process is uid 33, not uid 0"),
            ],
            services: storefront().services[..2].to_vec(),
            endpoints: vec![EndpointStatus {
                vm: "acme/api".into(),
                state: "queue-full".into(),
                left_ms: None,
                flows: 1,
                accept_queue: Some(api::admin::AcceptQueue { len: 5, max: 4 }),
            }],
            verdict: Verdict::Allow,
            decided_by: "acme/storefront-to-api".into(),
            because: None,
            generation: 3,
        }
    }

    #[test]
    fn allowed_flow_reads_as_a_story() {
        assert_eq!(
            explanation(&allowed(), Style::default()),
            "\
allow  tcp acme/web 10.0.0.11:40112 -> acme/api 10.0.0.12:8080
seen 1s ago, 12 packets, established

source       acme/web
  process    /usr/bin/storefront (storefront, pid 812, uid 33, unit storefront.service)
  confidence descriptor: reached from the very descriptor that carried the frame
destination  acme/api
  process    not asked for: no rule that could apply needs it

rules
  match     infra/watch (infrastructure, order 10: adds mirror)
            source VM acme/web is selected
  match     acme/storefront-to-api (allow)
            source VM acme/web is selected
  no match  acme/no-root (allow, audit only)
            source process is uid 33, not uid 0

services
  authorize  by acme/storefront-to-api
  mirror     by infra/watch (infrastructure, order 10)

endpoints
  acme/api     queue-full (1 flow, 5 of 5 wait to be accepted)

verdict      allow by acme/storefront-to-api at generation 3
"
        );
    }

    #[test]
    fn unknown_process_and_default_are_said_plainly() {
        let mut denied = allowed();
        denied.verdict = Verdict::Deny;
        denied.decided_by = "acme/default".into();
        denied.rules.clear();
        let flow = denied.flow.as_mut().unwrap();
        flow.generation = 2;
        flow.source.process = None;
        flow.source.confidence = Some(Confidence::Socket);
        flow.source.unknown = Some(UnknownReason::NoOwner);
        let shown = explanation(&denied, Style::default());
        for piece in [
            "judged at generation 2 as allow, by acme/storefront-to-api\n",
            "  process    unknown: no-owner\n             its socket belongs to uid 33\n",
            "  confidence socket: the socket is known, its process is not\n",
            "rules        the tenant has none that could apply\n",
            "verdict      deny by acme/default at generation 3, because no enforced rule matches\n",
        ] {
            assert!(shown.contains(piece), "{piece:?} is not in\n{shown}");
        }
    }

    #[test]
    fn what_a_service_demands_and_the_flow_does_not_meet_is_said_with_the_verdict() {
        let mut denied = allowed();
        denied.verdict = Verdict::Deny;
        denied.decided_by = "acme/prove".into();
        denied.because = Some("who is behind the source is not proven".into());
        let shown = explanation(&denied, Style::default());
        let verdict = "verdict      deny by acme/prove at generation 3, because who is behind the source is not proven\n";
        assert!(shown.ends_with(verdict), "{shown}");
    }

    #[test]
    fn flow_never_seen_is_said_to_be_hypothetical() {
        let mut story = allowed();
        story.hypothetical = true;
        assert!(explanation(&story, Style::default()).contains("not seen like this"));
        story.flow = None;
        story.decided_by = "acme/(isolation)".into();
        let shown = explanation(&story, Style::default());
        assert!(shown.starts_with("allow  no such flow has been seen"), "{shown}");
        assert!(shown.contains("tenants never reach each other"), "{shown}");
    }

    #[test]
    fn hostile_text_cannot_add_lines() {
        let mut story = allowed();
        let lines = explanation(&story, Style::default()).lines().count();
        let process = story.flow.as_mut().unwrap().source.process.as_mut().unwrap();
        process.exe = Some("/x\nverdict      allow".into());
        process.name = "\r\u{1b}[2K".into();
        story.rules[2].why = "source process is name \n\u{9b}2K".into();
        let shown = explanation(&story, Style::default());
        assert_eq!(shown.lines().count(), lines, "{shown}");
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }
}
