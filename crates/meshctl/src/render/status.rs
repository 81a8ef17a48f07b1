// SPDX-License-Identifier: Apache-2.0
//! The daemon's health and the policy in force.

use std::collections::BTreeMap;

use api::Diagnostic;
use api::admin::{Latency, LimitStatus, NameStats, PolicyStatus, PortMoved, SpanStats, Status};

use super::{Grid, Style, diagnostics, maybe, plain, plural, size, span};
use crate::text::{visible, visible_sentence};

/// The daemon's health.
pub(crate) fn status(status: &Status, style: Style) -> String {
    let poll = &status.poll;
    let mut shown = facts(&[
        ("version", visible(&status.version)),
        ("uptime", span(status.uptime_ms)),
        ("generation", status.generation.to_string()),
        ("flows", status.flows.to_string()),
        (
            "poll cores",
            format!(
                "{}, {} of {} rounds busy, {}",
                plural(poll.frames, "frame"),
                poll.busy_rounds,
                poll.rounds,
                plural(poll.sleeps, "sleep")
            ),
        ),
        ("attribution", attribution(&status.attribution)),
        ("names", names(status.names)),
    ]);
    if status.spans != SpanStats::default() {
        let SpanStats { exported, lost } = &status.spans;
        shown.push_str(&facts(&[("traces", format!("{}, {lost} lost", plural(*exported, "span")))]));
    }
    if status.poll.interactive.count > 0 {
        shown.push_str(&facts(&[("interactive", interactive(&status.poll.interactive))]));
    }
    shown.push('\n');
    shown.push_str(&cores(status, style));
    shown.push('\n');
    shown.push_str(&ports(status, style));
    if !status.limits.is_empty() {
        shown.push('\n');
        shown.push_str(&limits(&status.limits, style));
    }
    if !status.drops.is_empty() {
        shown.push('\n');
        shown.push_str(&drops(&status.drops, style));
    }
    shown + &refused(&status.policy_errors, style)
}

fn attribution(waits: &Latency) -> String {
    if waits.count == 0 {
        return "no frame had to wait for its process".into();
    }
    let waited = plural(waits.count, "frame");
    format!("{waited} waited, p50 {} us, p99 {} us, max {} us", waits.p50_us, waits.p99_us, waits.max_us)
}

fn names(names: NameStats) -> String {
    let NameStats { answered, forwarded, refused } = names;
    let questions = plural(answered + forwarded + refused, "question");
    format!("{questions}, {forwarded} asked of upstreams, {refused} refused by policy")
}

fn cores(status: &Status, style: Style) -> String {
    let head = ["CORE", "PORTS", "BUSY", "FRAMES", "HANDED OVER", "LINK FULL"];
    let mut grid = Grid::new(style, &head, &[1, 2, 3, 4, 5]);
    for core in &status.cores {
        let busy = format!("{}.{} %", core.busy_permille / 10, core.busy_permille % 10);
        grid.row(vec![
            plain(&core.core),
            plain(core.ports),
            plain(if core.answers { busy } else { "no answer".into() }),
            plain(core.frames),
            plain(core.handed_over),
            plain(core.link_full),
        ]);
    }
    grid.finish("no cores")
}

fn interactive(gaps: &Latency) -> String {
    format!("looked after every {} us (p50), {} us (p99), {} us (max)", gaps.p50_us, gaps.p99_us, gaps.max_us)
}

fn limits(limits: &[LimitStatus], style: Style) -> String {
    let header =
        ["LIMIT OF", "WAY", "BIT/S", "LIMIT BIT/S", "FRAMES", "BYTES", "HELD", "MEAN HELD US", "MAX HELD US"];
    let mut grid = Grid::new(style, &header, &[2, 3, 4, 5, 6, 7, 8]);
    for limit in limits {
        grid.row(vec![
            plain(&limit.name),
            plain(if limit.answers { "answers" } else { "calls" }),
            plain(limit.bits_per_second),
            plain(limit.limit_bits_per_second),
            plain(limit.frames),
            plain(size(limit.bytes)),
            plain(limit.held_frames),
            plain(limit.held_mean_us),
            plain(limit.held_max_us),
        ]);
    }
    grid.finish("") + &classes(limits, style)
}

/// Who shares limits, and what each gets; nothing if nobody does.
fn classes(limits: &[LimitStatus], style: Style) -> String {
    let header = ["SHARES LIMIT OF", "WAY", "CLASS", "SHARES", "RESERVED", "BIT/S", "BYTES", "HELD"];
    let mut grid = Grid::new(style, &header, &[3, 4, 5, 6, 7]);
    for limit in limits {
        for class in &limit.classes {
            let name = if class.name.is_empty() { "(all others)" } else { &class.name };
            grid.row(vec![
                plain(&limit.name),
                plain(if limit.answers { "answers" } else { "calls" }),
                plain(name),
                plain(class.shares),
                maybe(class.reserved_bits_per_second),
                plain(class.bits_per_second),
                plain(size(class.bytes)),
                plain(class.held_frames),
            ]);
        }
    }
    let shown = limits.iter().any(|limit| !limit.classes.is_empty());
    if shown { format!("\n{}", grid.finish("")) } else { String::new() }
}

fn ports(status: &Status, style: Style) -> String {
    let head = ["PORT", "CORE", "OUT", "OUT BYTES", "IN", "IN BYTES", "DROPPED"];
    let mut grid = Grid::new(style, &head, &[2, 3, 4, 5, 6]);
    for port in &status.ports {
        grid.row(vec![
            plain(&port.nic),
            plain(&port.core),
            plain(port.outbound_frames),
            plain(size(port.outbound_bytes)),
            plain(port.inbound_frames),
            plain(size(port.inbound_bytes)),
            plain(port.dropped_frames),
        ]);
    }
    grid.finish("no ports")
}

fn drops(drops: &BTreeMap<String, u64>, style: Style) -> String {
    let mut grid = Grid::new(style, &["DROPPED BECAUSE", "FRAMES"], &[1]);
    for (reason, count) in drops {
        grid.row(vec![plain(reason), plain(count)]);
    }
    grid.finish("")
}

/// A port that was told to move.
pub(crate) fn port_moved(moved: &PortMoved, _: Style) -> String {
    format!("{} moves to core {}\n", visible(&moved.nic), visible(&moved.core))
}

/// What policy is in force.
pub(crate) fn policy_status(status: &PolicyStatus, style: Style) -> String {
    let resources: Vec<String> =
        status.resources.iter().map(|(kind, count)| format!("{count} {}", visible(kind))).collect();
    let mut shown = facts(&[
        ("generation", status.generation.to_string()),
        ("in force for", span(status.age_ms)),
        ("read from", visible(&status.source)),
        ("resources", resources.join(", ")),
    ]);
    for warning in &status.warnings {
        shown.push_str(&format!("{}: {}\n", style.notice("warning"), visible_sentence(warning)));
    }
    shown + &refused(&status.errors, style)
}

/// Why the last load was refused, if it was.
fn refused(errors: &[Diagnostic], style: Style) -> String {
    if errors.is_empty() {
        return String::new();
    }
    let headline = style.bad("the last load was refused; the policy before it stays in force");
    format!("\n{headline}\n{}", diagnostics(errors, style))
}

/// Labels and values, one per line.
fn facts(facts: &[(&str, String)]) -> String {
    facts.iter().fold(String::new(), |shown, (label, value)| {
        let line = format!("{label:<14}{value}");
        shown + line.trim_end() + "\n"
    })
}

#[cfg(test)]
mod tests {
    use api::admin::{ClassStatus, CoreStatus, PollStats, PortStatus};

    use super::*;

    fn held_back() -> LimitStatus {
        LimitStatus {
            name: "acme/slow".into(),
            answers: true,
            limit_bits_per_second: 8_000_000,
            bits_per_second: 7_999_000,
            frames: 70,
            bytes: 65_536,
            held_frames: 60,
            held_mean_us: 1400,
            held_max_us: 9000,
            classes: [("", 100, None), ("acme/backup", 300, Some(1000))]
                .map(|(name, shares, reserved_bits_per_second)| ClassStatus {
                    name: name.into(),
                    shares,
                    reserved_bits_per_second,
                    bits_per_second: 20_000 * u64::from(shares),
                    bytes: 100,
                    held_frames: 30,
                })
                .into(),
        }
    }

    #[test]
    fn healthy_daemon_fits_on_a_screen() {
        let healthy = Status {
            version: "0.1.0".into(),
            generation: 2,
            uptime_ms: 61_000,
            flows: 7,
            ports: vec![PortStatus {
                nic: "acme/web/net0".into(),
                outbound_frames: 10,
                outbound_bytes: 1024,
                inbound_frames: 9,
                inbound_bytes: 900,
                dropped_frames: 1,
                core: "0".into(),
            }],
            drops: BTreeMap::from([("spoofed-mac".into(), 1)]),
            cores: vec![
                CoreStatus {
                    core: "0".into(),
                    answers: true,
                    ports: 1,
                    busy_permille: 123,
                    frames: 19,
                    ..CoreStatus::default()
                },
                CoreStatus { core: "side".into(), ..CoreStatus::default() },
            ],
            poll: PollStats {
                rounds: 100,
                busy_rounds: 20,
                sleeps: 1,
                frames: 19,
                interactive: Latency { count: 9, p50_us: 1, p99_us: 30, max_us: 80 },
            },
            limits: vec![held_back()],
            attribution: Latency { count: 3, p50_us: 20, p99_us: 60, max_us: 61 },
            lookup: Latency::default(),
            views: BTreeMap::new(),
            policy_errors: vec![],
            records: api::admin::RecordStats::default(),
            names: NameStats { answered: 4, forwarded: 2, refused: 1 },
            spans: SpanStats { exported: 12, lost: 3 },
        };
        assert_eq!(
            status(&healthy, Style::default()),
            "\
version       0.1.0
uptime        1m 1s
generation    2
flows         7
poll cores    19 frames, 20 of 100 rounds busy, 1 sleep
attribution   3 frames waited, p50 20 us, p99 60 us, max 61 us
names         7 questions, 2 asked of upstreams, 1 refused by policy
traces        12 spans, 3 lost
interactive   looked after every 1 us (p50), 30 us (p99), 80 us (max)

CORE  PORTS       BUSY  FRAMES  HANDED OVER  LINK FULL
0         1     12.3 %      19            0          0
side      0  no answer       0            0          0

PORT           CORE  OUT  OUT BYTES  IN  IN BYTES  DROPPED
acme/web/net0  0      10    1.0 KiB   9     900 B        1

LIMIT OF   WAY        BIT/S  LIMIT BIT/S  FRAMES     BYTES  HELD  MEAN HELD US  MAX HELD US
acme/slow  answers  7999000      8000000      70  64.0 KiB    60          1400         9000

SHARES LIMIT OF  WAY      CLASS         SHARES  RESERVED    BIT/S  BYTES  HELD
acme/slow        answers  (all others)     100         -  2000000  100 B    30
acme/slow        answers  acme/backup      300      1000  6000000  100 B    30

DROPPED BECAUSE  FRAMES
spoofed-mac           1
"
        );
    }

    #[test]
    fn refused_load_is_shown_with_its_places() {
        let error = Diagnostic {
            file: "p.yaml".into(),
            line: 2,
            column: 3,
            field: "kind".into(),
            reason: "`X` is not known here".into(),
            help: String::new(),
        };
        let shown =
            policy_status(&PolicyStatus { errors: vec![error], ..PolicyStatus::default() }, Style::default());
        assert!(shown.contains("stays in force\np.yaml:2:3: kind: `X` is not known here\n"), "{shown}");
    }
}
