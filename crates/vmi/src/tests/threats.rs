// SPDX-License-Identifier: Apache-2.0
//! What inspections find in a guest whose memory changes, and that they find nothing else.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::kernel;
use super::kernel::{KEY, KEY_TARGET, Kernel, MODULE_KEY};
use crate::memory::fixture::Ram;
use crate::{Certainty, Finding, FindingKind, Guest, PhysicalMemory, Unmapped};

/// RAM that changes under the reader.
struct Live(Mutex<Ram>);

impl PhysicalMemory for Live {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.0.lock().unwrap().read(gpa, out)
    }

    fn extents(&self) -> Vec<Range<u64>> {
        self.0.lock().unwrap().extents()
    }
}

/// A guest that has been inspected for a while, then changed, then inspected for four seconds more.
fn found_after(change: impl FnOnce(&mut Kernel)) -> Vec<Finding> {
    let mut kernel = kernel();
    let live = Arc::new(Live(Mutex::new(kernel.ram.clone())));
    let mut guest = Guest::attach(Arc::clone(&live) as Arc<dyn PhysicalMemory>).unwrap();
    let mut now = Duration::ZERO;
    let mut inspect = |guest: &mut Guest, seconds: u32| {
        for _ in 0..25 * seconds {
            guest.inspect(now).unwrap();
            now += Duration::from_millis(40);
        }
    };
    inspect(&mut guest, 4);
    assert_eq!(guest.threats(), []);
    let coverage = guest.coverage();
    assert!(coverage.pages == 5 && coverage.pages_known == 5 && coverage.rounds > 1, "{coverage:?}");
    change(&mut kernel);
    *live.0.lock().unwrap() = kernel.ram.clone();
    inspect(&mut guest, 4);
    guest.threats()
}

fn kinds(findings: &[Finding]) -> Vec<FindingKind> {
    findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn guest_that_stays_as_it_was_has_no_threats() {
    assert_eq!(found_after(|_| {}), []);
}

#[test]
fn task_taken_off_the_list_is_hidden() {
    let found = found_after(|kernel| {
        let link = kernel.at.shop.at(kernel.layout.task.tasks);
        kernel.unlink(link);
    });
    // Its packet socket is then held by nobody who is listed.
    assert_eq!(kinds(&found), [FindingKind::HiddenTask, FindingKind::PacketSocket]);
    assert_eq!(found[0].certainty, Certainty::Certain);
    assert!(found[0].evidence.starts_with("process 7 `shop`"), "{}", found[0].evidence);
}

#[test]
fn task_that_only_a_run_queue_knows_is_hidden() {
    let found = found_after(|kernel| {
        let link = kernel.at.shop.at(kernel.layout.task.tasks);
        kernel.unlink(link);
        kernel.put(kernel.at.ids, 7 * 8, 0);
        let current = kernel.layout.cpu.clone().unwrap().queue.unwrap().current;
        kernel.put(kernel.at.queues[0], current, kernel.at.init_task.0);
        kernel.enqueue(kernel.at.shop, 1);
    });
    assert_eq!(kinds(&found), [FindingKind::HiddenTask, FindingKind::PacketSocket]);
    assert!(found[0].evidence.starts_with("process 7 `shop` runs"), "{}", found[0].evidence);
}

#[test]
fn task_without_process_id_is_told() {
    let found = found_after(|kernel| kernel.put(kernel.at.ids, 7 * 8, 0));
    assert_eq!(kinds(&found), [FindingKind::TaskWithoutId]);
}

#[test]
fn task_that_exits_is_in_neither_and_is_no_threat() {
    let found = found_after(|kernel| {
        kernel.put(kernel.at.ids, 7 * 8, 0);
        let exit_state = kernel.at.exit_state;
        kernel.put(kernel.at.shop, exit_state, 16);
    });
    assert_eq!(found, []);
}

#[test]
fn held_connection_that_no_table_has_is_hidden() {
    let found = found_after(Kernel::empty_connections);
    assert_eq!(kinds(&found), [FindingKind::HiddenSocket]);
    assert!(found[0].evidence.contains("10.0.0.1:1234 to 10.0.0.2:80, held by process 7 (fd 4)"));
}

#[test]
fn changed_text_and_data_are_told_with_their_place() {
    let found = found_after(|kernel| {
        kernel.write(kernel.at.text.at(0x1234), &[0xe9]);
        kernel.write(kernel.at.rodata.at(0x10), &[1]);
    });
    assert_eq!(kinds(&found), [FindingKind::ModifiedText, FindingKind::ModifiedData]);
    assert_eq!(found[0].symbol.as_deref(), Some("_stext+0x1200"));
}

#[test]
fn what_only_the_first_look_saw_is_not_what_was_there() {
    let mut kernel = kernel();
    let place = kernel.at.text.at(0x1234);
    let original = kernel.read(place).to_le_bytes()[0];
    let mut changing = |byte: u8| {
        kernel.write(place, &[byte]);
        kernel.ram.clone()
    };
    let live = Arc::new(Live(Mutex::new(changing(0xcc))));
    let mut guest = Guest::attach(Arc::clone(&live) as Arc<dyn PhysicalMemory>).unwrap();
    let mut now = Duration::ZERO;
    let mut inspect = |guest: &mut Guest, rounds: u64| {
        let until = guest.coverage().rounds + rounds;
        while guest.coverage().rounds < until {
            guest.inspect(now).unwrap();
            now += Duration::from_millis(40);
        }
    };
    inspect(&mut guest, 1);
    assert_eq!(guest.coverage().pages_known, 0);
    *live.0.lock().unwrap() = changing(original);
    inspect(&mut guest, 100);
    assert_eq!((guest.threats(), guest.coverage().pages_known), (vec![], 5));
    *live.0.lock().unwrap() = changing(0xcc);
    inspect(&mut guest, 100);
    assert_eq!(kinds(&guest.threats()), [FindingKind::ModifiedText]);
}

#[test]
fn static_key_may_be_switched_but_not_redirected() {
    let jump = |distance: u32| {
        let [a, b, c, d] = distance.to_le_bytes();
        [0xe9, a, b, c, d]
    };
    let target = KEY_TARGET - KEY - 5;
    let switched = found_after(|kernel| kernel.write(kernel.at.text.at(KEY), &jump(target)));
    assert_eq!(switched, []);
    let redirected = found_after(|kernel| kernel.write(kernel.at.text.at(KEY), &jump(target + 1)));
    assert_eq!(kinds(&redirected), [FindingKind::ModifiedText]);
}

#[test]
fn text_of_modules_is_watched_from_load_to_load() {
    let place = |kernel: &Kernel| kernel.at.module_text.at(0x200);
    let changed = found_after(|kernel| kernel.write(place(kernel), &[0xe9]));
    assert_eq!(kinds(&changed), [FindingKind::ModifiedText]);
    assert!(changed[0].evidence.contains("text of module `shop_module`"), "{}", changed[0].evidence);
    let loaded_again = found_after(|kernel| {
        kernel.write(place(kernel), &[0xe9]);
        kernel.put(kernel.at.module_load, 0, 78);
    });
    assert_eq!(loaded_again, []);
    let jump = [0xe9, 0u8.wrapping_sub(MODULE_KEY as u8 + 5), 0xff, 0xff, 0xff];
    let switched = found_after(|kernel| kernel.write(kernel.at.module_text.at(MODULE_KEY), &jump));
    assert_eq!(switched, []);
}

#[test]
fn pages_that_may_be_executed_must_be_somebodys() {
    let found = found_after(|kernel| {
        let entry = kernel.read(kernel.at.direct_entry);
        kernel.put(kernel.at.direct_entry, 0, entry & !(1 << 63));
    });
    assert_eq!(kinds(&found), [FindingKind::UnknownCode]);
    assert!(found[0].evidence.contains("code of no known module"), "{}", found[0].evidence);
}

#[test]
fn gates_do_not_change_even_within_the_kernels_text() {
    let found = found_after(|kernel| kernel.write(kernel.at.gates.at(14 * 16 + 8), &[1]));
    assert_eq!(kinds(&found), [FindingKind::InterruptEntry]);
}

#[test]
fn entries_must_lead_to_the_kernels_text() {
    let found = found_after(|kernel| {
        kernel.put(kernel.at.syscalls, 62 * 8, 0xffff_ffff_c000_0000);
        // A present gate: offset 0x1234 in nobody's code.
        kernel.write(kernel.at.gates.at(14 * 16), &[0x34, 0x12, 0x10, 0, 0, 0x8e]);
    });
    let expected = [FindingKind::SyscallEntry, FindingKind::InterruptEntry, FindingKind::InterruptEntry];
    assert_eq!(kinds(&found), expected);
    assert!(found[0].evidence.contains("system call 62 leads to 0xffffffffc0000000"));
}
