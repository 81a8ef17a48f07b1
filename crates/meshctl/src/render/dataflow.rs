// SPDX-License-Identifier: Apache-2.0
//! Who in a machine talks to whom, as a table and as a graph for Graphviz.

use std::collections::BTreeSet;
use std::fmt::Write;

use api::admin::{Conversation, DataFlow, Direction, FeedConfidence, ToldBy};

use super::inside::micros;
use super::{Grid, Style, maybe, plain, size, span};
use crate::text::visible;

/// Conversations, then which feeds which.
pub(crate) fn data_flow(flow: &DataFlow, style: Style) -> String {
    const HEADER: [&str; 10] =
        ["#", "PROCESS", "DIRECTION", "PEER", "PORT", "FLOWS", "SENT", "RECEIVED", "RTT", "SEEN"];
    let mut grid = Grid::new(style, &[&HEADER[..], &["TOLD BY"]].concat(), &[0, 5, 6, 7, 8, 9]);
    for (place, talk) in flow.conversations.iter().enumerate() {
        grid.row(vec![
            plain(place),
            plain(process(talk)),
            plain(if talk.direction == Direction::Inbound { "from" } else { "to" }),
            plain(peer(talk)),
            plain(port(talk)),
            plain(talk.flows),
            plain(size(talk.sent_bytes)),
            plain(size(talk.received_bytes)),
            maybe(talk.rtt_us.map(micros)),
            plain(span(talk.last_seen_ms)),
            plain(told_by(talk.told_by)),
        ]);
    }
    let mut shown = grid.finish("no flows");
    for feed in &flow.feeds {
        let confidence = confidence(feed.confidence);
        writeln!(shown, "{confidence}: {} feeds {}", feed.inbound, feed.outbound)
            .expect("a string takes all that is written");
    }
    shown
}

/// A graph for `dot`: processes are boxes, peers ellipses, dashed arrows say which conversation feeds which.
pub(crate) fn graph(flow: &DataFlow, _style: Style) -> String {
    let mut shown = String::from("digraph flows {\n  rankdir=LR;\n");
    let nodes = flow.conversations.iter().flat_map(|talk| [(process(talk), "box"), (peer(talk), "ellipse")]);
    let mut lines: Vec<String> = nodes
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|(name, shape)| format!("{} [shape={shape}];", quoted(&name)))
        .collect();
    for talk in &flow.conversations {
        let ends = [peer(talk), process(talk)];
        let (from, to) = match talk.direction {
            Direction::Inbound => (&ends[0], &ends[1]),
            Direction::Outbound => (&ends[1], &ends[0]),
        };
        let bytes = size(talk.sent_bytes.saturating_add(talk.received_bytes));
        let label = format!("{}, {bytes}", port(talk));
        lines.push(format!("{} -> {} [label={}];", quoted(from), quoted(to), quoted(&label)));
    }
    for feed in &flow.feeds {
        let place = |at: usize| flow.conversations.get(at);
        if let (Some(inbound), Some(outbound)) = (place(feed.inbound), place(feed.outbound)) {
            let label = quoted(&format!("feeds, {}", confidence(feed.confidence)));
            let (from, to) = (quoted(&peer(inbound)), quoted(&peer(outbound)));
            lines.push(format!("{from} -> {to} [style=dashed, label={label}];"));
        }
    }
    for line in lines {
        writeln!(shown, "  {line}").expect("a string takes all that is written");
    }
    shown + "}\n"
}

/// A name for `dot`: quotes and backslashes act within quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", visible(text).replace('\\', "\\\\").replace('"', "\\\""))
}

fn process(talk: &Conversation) -> String {
    talk.process.as_ref().map_or("unknown".into(), |process| format!("{}[{}]", process.name, process.pid))
}

fn peer(talk: &Conversation) -> String {
    talk.peer_vm.as_ref().map_or_else(|| talk.peer.to_string(), |vm| format!("{vm} {}", talk.peer))
}

fn port(talk: &Conversation) -> String {
    format!("{}/{}", talk.protocol, talk.port)
}

fn told_by(told_by: ToldBy) -> &'static str {
    match told_by {
        ToldBy::Nothing => "-",
        ToldBy::Listener => "listener",
        ToldBy::Socket => "socket",
        ToldBy::Verdict => "verdict",
    }
}

fn confidence(confidence: FeedConfidence) -> &'static str {
    match confidence {
        FeedConfidence::Possible => "possible",
        FeedConfidence::Likely => "likely",
    }
}

#[cfg(test)]
mod tests {
    use api::admin::{Feed, Process};

    use super::*;

    fn talk(direction: Direction, name: &str, peer: &str, peer_vm: Option<&str>, port: u16) -> Conversation {
        Conversation {
            process: Some(Process {
                pid: 7,
                parent_pid: 1,
                name: name.into(),
                exe: None,
                uid: None,
                user: None,
                unit: None,
                cgroup: None,
                start_time_ns: 0,
            }),
            told_by: ToldBy::Socket,
            direction,
            protocol: "tcp".into(),
            peer: peer.parse().unwrap(),
            peer_vm: peer_vm.map(str::to_owned),
            port,
            flows: 2,
            sent_frames: 3,
            sent_bytes: 2048,
            received_frames: 4,
            received_bytes: 512,
            rtt_us: Some(250),
            first_seen_ms: 9000,
            last_seen_ms: 1000,
        }
    }

    fn flow(name: &str) -> DataFlow {
        DataFlow {
            conversations: vec![
                talk(Direction::Inbound, name, "10.0.0.1", Some("acme/web"), 8080),
                talk(Direction::Outbound, name, "192.0.2.9", None, 443),
            ],
            feeds: vec![Feed { inbound: 0, outbound: 1, confidence: FeedConfidence::Likely }],
        }
    }

    #[test]
    fn table_shows_conversations_and_what_feeds_what() {
        assert_eq!(
            data_flow(&flow("shop"), Style::default()),
            "\
#  PROCESS  DIRECTION  PEER               PORT      FLOWS     SENT  RECEIVED    RTT  SEEN  TOLD BY
0  shop[7]  from       acme/web 10.0.0.1  tcp/8080      2  2.0 KiB     512 B  250us    1s  socket
1  shop[7]  to         192.0.2.9          tcp/443       2  2.0 KiB     512 B  250us    1s  socket
likely: 0 feeds 1
"
        );
        assert_eq!(data_flow(&DataFlow::default(), Style::default()), "no flows\n");
    }

    #[test]
    fn graph_keeps_hostile_names_within_their_quotes() {
        let drawn = graph(&flow("a\"]; x\\"), Style::default());
        assert_eq!(
            drawn,
            r#"digraph flows {
  rankdir=LR;
  "192.0.2.9" [shape=ellipse];
  "a\"]; x\\\\[7]" [shape=box];
  "acme/web 10.0.0.1" [shape=ellipse];
  "acme/web 10.0.0.1" -> "a\"]; x\\\\[7]" [label="tcp/8080, 2.5 KiB"];
  "a\"]; x\\\\[7]" -> "192.0.2.9" [label="tcp/443, 2.5 KiB"];
  "acme/web 10.0.0.1" -> "192.0.2.9" [style=dashed, label="feeds, likely"];
}
"#
        );
        assert!(!graph(&flow("\u{1b}\n"), Style::default()).contains('\u{1b}'));
    }

    #[test]
    fn feeds_of_conversations_that_are_not_there_are_not_drawn() {
        let mut flow = flow("shop");
        flow.feeds[0].inbound = 9;
        assert!(!graph(&flow, Style::default()).contains("dashed"));
    }
}
