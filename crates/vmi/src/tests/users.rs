// SPDX-License-Identifier: Apache-2.0
//! Names of users, from a file in the guest's page cache.

use std::sync::Arc;

use super::hostile::Changing;
use super::kernel::{Kernel, Passwd};
use super::{attach, connection, kernel};
use crate::Guest;
use crate::memory::Gva;

const LIST: &str = "root:x:0:0:root:/root:/bin/sh\nshop:x:1001:1001::/srv:/bin/false\n";

/// What the users of `init` and `shop` are called.
fn names(guest: &Guest) -> [Option<String>; 2] {
    let users = guest.processes().unwrap().into_iter().map(|process| process.user);
    users.collect::<Vec<_>>().try_into().unwrap()
}

fn both(kernel: &Kernel) -> [Option<String>; 2] {
    names(&attach(&kernel.ram))
}

#[test]
fn users_have_the_names_of_the_machines_own_list() {
    let mut kernel = kernel();
    kernel.list_users(LIST);
    assert_eq!(both(&kernel), [Some("root".into()), Some("shop".into())]);
    let mut guest = attach(&kernel.ram);
    let owner = connection(&mut guest);
    assert_eq!((owner.user(), owner.socket_user.as_deref()), (Some("shop"), Some("shop")));
}

#[test]
fn users_on_a_later_page_are_found_too() {
    let mut kernel = kernel();
    let filler = "#".repeat(4090);
    kernel.list_users(&format!("{filler}\n{LIST}"));
    assert_eq!(both(&kernel), [Some("root".into()), Some("shop".into())]);
}

#[test]
fn slot_that_refers_to_the_one_before_is_the_page_after_it() {
    let mut kernel = kernel();
    let filler = "#".repeat(4090);
    let list = kernel.list_users(&format!("{filler}\n{LIST}"));
    // The first slot holds a folio of two pages, the second says so.
    kernel.put(list.pages, 8, 2);
    assert_eq!(both(&kernel), [Some("root".into()), Some("shop".into())]);
}

#[test]
fn users_whose_list_is_not_in_memory_have_numbers_only() {
    let numbers_only = [None, None];
    assert_eq!(both(&kernel()), numbers_only);
    let changes: [fn(&mut Kernel, Passwd); 6] = [
        // Its second page is not in memory, or has been swapped out.
        |kernel, list| kernel.put(list.pages, 8, 0),
        |kernel, list| kernel.put(list.pages, 8, 0x1235),
        // The file has been removed.
        |kernel, list| kernel.put(list.hashed, 0, 0),
        // Something else is mounted on its directory.
        |kernel, list| {
            let etc = Gva(kernel.read(list.dentry.at(kernel.layout.dentry.parent)));
            kernel.mount_over(list, etc);
        },
        // The page's account is none.
        |kernel, list| kernel.put(list.pages, 0, 0x1000),
        |kernel, list| kernel.put(list.pages, 0, u64::MAX - 7),
    ];
    for change in changes {
        let mut kernel = kernel();
        let list = kernel.list_users(LIST);
        change(&mut kernel, list);
        assert_eq!(both(&kernel), numbers_only);
    }
}

#[test]
fn mount_elsewhere_does_not_matter() {
    let mut kernel = kernel();
    let list = kernel.list_users(LIST);
    kernel.mount_over(list, list.root);
    assert_eq!(both(&kernel), [Some("root".into()), Some("shop".into())]);
}

#[test]
fn directory_that_loops_is_given_up() {
    let mut kernel = kernel();
    let list = kernel.list_users(LIST);
    let layout = kernel.layout.user.clone().unwrap();
    // The entry before `passwd` leads to itself.
    let etc = Gva(kernel.read(list.dentry.at(kernel.layout.dentry.parent)));
    let first = Gva(kernel.read(etc.at(layout.children.head)));
    kernel.put(first, 0, first.0);
    assert_eq!(both(&kernel), [None, None]);
}

/// Leads from the entry before `passwd` to one of another directory, as an entry that went meanwhile may do; returns
/// how to put it right.
fn lead_astray(kernel: &mut Kernel, list: Passwd) -> (Gva, u64) {
    let layout = kernel.layout.user.clone().unwrap();
    let etc = Gva(kernel.read(list.dentry.at(kernel.layout.dentry.parent)));
    let first = Gva(kernel.read(etc.at(layout.children.head)));
    let (next, astray) = (kernel.read(first), kernel.read(list.root.at(layout.children.head)));
    kernel.put(first, 0, astray);
    (first, next)
}

#[test]
fn names_outlive_a_directory_that_changes_under_the_reader() {
    let mut kernel = kernel();
    let list = kernel.list_users(LIST);
    let ram = Changing::new(&kernel.ram);
    let guest = Guest::attach(Arc::clone(&ram) as _).unwrap();
    assert_eq!(names(&guest), [Some("root".into()), Some("shop".into())]);
    lead_astray(&mut kernel, list);
    ram.become_like(&kernel.ram);
    // Longer than what was read is taken without looking for the file again.
    for _ in 0..1100 {
        assert_eq!(names(&guest)[1].as_deref(), Some("shop"));
    }
}

#[test]
fn names_that_could_not_be_read_for_a_change_are_read_soon_after() {
    let mut kernel = kernel();
    let list = kernel.list_users(LIST);
    let (link, next) = lead_astray(&mut kernel, list);
    let ram = Changing::new(&kernel.ram);
    let guest = Guest::attach(Arc::clone(&ram) as _).unwrap();
    assert_eq!(names(&guest), [None, None]);
    kernel.put(link, 0, next);
    ram.become_like(&kernel.ram);
    let read = (0..10).any(|_| names(&guest)[1].is_some());
    assert!(read, "not within 20 questions");
}

#[test]
fn list_is_read_again_when_it_was_changed() {
    let mut kernel = kernel();
    let list = kernel.list_users(LIST);
    let ram = Changing::new(&kernel.ram);
    let guest = Guest::attach(Arc::clone(&ram) as _).unwrap();
    assert_eq!(names(&guest), [Some("root".into()), Some("shop".into())]);
    kernel.write(list.text[0], b"rooT:x:0:0::/:\nsales:x:1001:");
    ram.become_like(&kernel.ram);
    assert_eq!(names(&guest)[1].as_deref(), Some("shop"), "what has not changed is not read again");
    kernel.put(list.changed, 0, 1_700_000_001);
    ram.become_like(&kernel.ram);
    assert_eq!(names(&guest), [Some("rooT".into()), Some("sales".into())]);
}
