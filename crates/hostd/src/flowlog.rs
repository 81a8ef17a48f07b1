// SPDX-License-Identifier: Apache-2.0
//! The memory of flows that the switch has let go of, and the stream of what happens to flows now.
//!
//! Bounds: [`RECENT_MAX`] events are remembered, the oldest forgotten first; each watcher may be
//! [`WATCHER_QUEUED_MAX`] events behind, more are lost to that watcher alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use vswitch::{FlowChange, FlowEnd, FlowEvent, FlowRecord};

use crate::funnel::Funnel;
use crate::otlp::Spans;

/// Events remembered.
pub const RECENT_MAX: usize = 4096;
/// Events that a watcher may be behind.
pub const WATCHER_QUEUED_MAX: usize = 4096;

/// Without an event for that long, what waits for the exporter is looked at again.
const QUIET_MAX: Duration = Duration::from_millis(200);

/// What happened to flows lately.
#[derive(Debug, Default)]
pub struct FlowLog {
    inner: Mutex<Inner>,
    /// Whether there are watchers.
    watched: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Inner {
    recent: VecDeque<Arc<FlowEvent>>,
    watchers: Vec<Sender<Arc<FlowEvent>>>,
}

impl FlowLog {
    /// Starts the thread that takes events from the poll thread. `export` is told of each flow that is over, `spans`
    /// of those that are traced.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        events: Receiver<FlowEvent>,
        mut export: Option<Funnel>,
        spans: Spans,
    ) -> std::io::Result<Arc<Self>> {
        let log = Arc::new(Self::default());
        let keeper = Arc::clone(&log);
        std::thread::Builder::new().name("flow-log".into()).spawn(move || {
            loop {
                match events.recv_timeout(QUIET_MAX) {
                    Ok(event) => {
                        if event.logged {
                            write(&event);
                        }
                        spans.offer(&event);
                        if let Some(export) = &mut export
                            && event.change != FlowChange::Opened
                        {
                            let mut event = event.clone();
                            event.record.leave_untold();
                            export.offer(event);
                        }
                        keeper.note(event);
                    }
                    Err(RecvTimeoutError::Timeout) => export.iter_mut().for_each(Funnel::drain),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(log)
    }

    fn note(&self, event: FlowEvent) {
        let event = Arc::new(event);
        let mut inner = self.lock();
        let gone = |watcher: &Sender<_>| {
            matches!(watcher.try_send(Arc::clone(&event)), Err(TrySendError::Disconnected(_)))
        };
        inner.watchers.retain(|watcher| !gone(watcher));
        self.watched.store(!inner.watchers.is_empty(), Ordering::Relaxed);
        if inner.recent.len() == RECENT_MAX {
            inner.recent.pop_front();
        }
        inner.recent.push_back(event);
    }

    /// Everything from now on.
    pub fn watch(&self) -> Receiver<Arc<FlowEvent>> {
        let (sender, receiver) = crossbeam_channel::bounded(WATCHER_QUEUED_MAX);
        let mut inner = self.lock();
        inner.watchers.push(sender);
        self.watched.store(true, Ordering::Relaxed);
        receiver
    }

    /// Whether anybody watches, now and later: if not, nobody needs to be told of flows that open.
    pub fn watched(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.watched)
    }

    /// The newest remembered event whose flow `fits`.
    pub fn newest(&self, fits: impl Fn(&FlowRecord) -> bool) -> Option<Arc<FlowEvent>> {
        self.lock().recent.iter().rev().find(|event| fits(&event.record)).map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes an event that a rule wants in the daemon's log. What a guest calls itself is quoted.
fn write(event: &FlowEvent) {
    let FlowEvent { change, record, .. } = event;
    let end = |end: &FlowEnd| end.nic.as_ref().map_or_else(|| "outside".to_owned(), |nic| nic.vm.to_string());
    let process = record.initiator.attribution.as_ref().and_then(|is| is.process.as_ref());
    let exe = process.map(|process| process.exe.as_ref().unwrap_or(&process.name));
    let judgement = record.judgement.as_deref();
    tracing::info!(
        target: "flow",
        %change,
        protocol = %record.tuple.protocol,
        source = %SocketAddr::new(record.tuple.source, record.tuple.source_port),
        from = end(&record.initiator),
        exe,
        destination = %SocketAddr::new(record.tuple.destination, record.tuple.destination_port),
        to = end(&record.responder),
        decided_by = judgement.map(|judgement| tracing::field::display(&judgement.decided_by)),
        because = judgement.and_then(|judgement| judgement.unmet).map(tracing::field::display),
        sent_bytes = record.initiator.sent_bytes,
        received_bytes = record.responder.sent_bytes,
        flows = event.flows,
        "flow of a rule that logs"
    );
}

#[cfg(test)]
pub mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use model::{FiveTuple, Generation, Moment, Protocol};
    use vswitch::{FlowState, PortId};

    use super::*;

    pub fn event(source_port: u16) -> FlowEvent {
        let end = |port| FlowEnd {
            port: PortId(port),
            nic: None,
            attribution: None,
            sent_frames: 0,
            sent_bytes: 0,
            sent_flags: packet::TcpFlags::default(),
        };
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let record = FlowRecord {
            tuple: FiveTuple {
                source: address,
                destination: address,
                source_port,
                destination_port: 80,
                protocol: Protocol::Tcp,
            },
            delivered: SocketAddr::new(address, 80),
            initiator: end(0),
            responder: end(1),
            state: FlowState::SynSent,
            judgement: None,
            generation: Generation(1),
            opened: Moment(0),
            last_seen: Moment(0),
            rtt: None,
            choice: None,
            trace: None,
            told: None,
            spoken: None,
        };
        FlowEvent { at: Moment(0), change: FlowChange::Opened, record, flows: 1, logged: false }
    }

    #[test]
    fn only_the_newest_events_are_remembered() {
        let log = FlowLog::default();
        for number in 0..=RECENT_MAX {
            log.note(event(number as u16));
        }
        assert!(log.newest(|record| record.tuple.source_port == 0).is_none());
        assert_eq!(log.newest(|_| true).unwrap().record.tuple.source_port, RECENT_MAX as u16);
    }

    #[test]
    fn slow_watcher_loses_events_and_gone_watcher_is_forgotten() {
        let log = FlowLog::default();
        let slow = log.watch();
        drop(log.watch());
        for number in 0..=WATCHER_QUEUED_MAX {
            log.note(event(number as u16));
        }
        assert_eq!(slow.len(), WATCHER_QUEUED_MAX);
        assert_eq!(log.lock().watchers.len(), 1);
        drop(slow);
        assert!(log.watched().load(Ordering::Relaxed), "that is seen with the next event");
        log.note(event(0));
        assert!(!log.watched().load(Ordering::Relaxed));
    }
}
