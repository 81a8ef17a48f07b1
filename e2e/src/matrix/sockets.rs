// SPDX-License-Identifier: Apache-2.0
//! Sockets of all network namespaces and threads of all processes, by RAM and by the guest's own `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use api::admin::{Request, Response};

use crate::Shop;
use crate::agreement::{self, plain_name};

/// What names a socket: network namespace, protocol, both ends, inode (zero where no descriptor refers to it).
type Name = (u64, String, String, String, u64);
/// State, user (where there is an inode) and the processes with the descriptors that refer to it.
type Told = (String, Option<u32>, BTreeSet<(u32, u32)>);

/// Prints a namespace of each kind once with its tables, and every descriptor that is a socket.
const LOOK: &str = "\
cd /proc; seen=; for pid in [0-9]*; do \
net=$(readlink $pid/ns/net) || continue; \
case \"$seen\" in *\"$net\"*) continue;; esac; seen=\"$seen $net\"; \
for table in tcp tcp6 udp udp6; do \
awk -v net=\"$net\" -v table=$table 'FNR > 1 {print \"row\", net, table, $2, $3, $4, $8, $10}' $pid/net/$table 2>/dev/null; \
done; done; ls -l [0-9]*/fd/ 2>/dev/null | grep -e '^[0-9]*/fd' -e 'socket:' | sed 's/.* \\([0-9]*\\) -> /\\1 /'";

/// One machine's sockets equal its own.
pub(super) fn compare(shop: &Shop, id: &str) -> Result<String> {
    let mut namespaces = 0;
    let from_guest = || {
        let told = from_guest(shop, id)?;
        namespaces = told.keys().map(|(net, ..)| *net).collect::<BTreeSet<u64>>().len();
        Ok(told)
    };
    let count = agreement::compare(from_guest, || from_ram(shop, id))?;
    Ok(format!("{count} sockets in {namespaces} namespaces"))
}

fn from_ram(shop: &Shop, id: &str) -> Result<BTreeMap<Name, Told>> {
    let Response::Sockets(sockets) = shop.ask(&Request::VmSockets { vm: id.into() })? else {
        bail!("not a list of sockets");
    };
    let told = sockets.into_iter().map(|socket| {
        let inode = socket.inode.unwrap_or_default();
        let owners = socket.owners.iter().map(|owner| (owner.pid, owner.fd)).collect();
        let name = (socket.netns.unwrap_or_default(), socket.protocol, socket.local, socket.remote, inode);
        (name, (socket.state, socket.uid.filter(|_| inode != 0), owners))
    });
    Ok(told.collect())
}

fn from_guest(shop: &Shop, id: &str) -> Result<BTreeMap<Name, Told>> {
    let printed = shop.vm(id).run(LOOK)?.stdout;
    let mut owners: BTreeMap<u64, BTreeSet<(u32, u32)>> = BTreeMap::new();
    let (mut rows, mut pid) = (Vec::new(), 0);
    for line in printed.lines() {
        if let Some(row) = line.strip_prefix("row ") {
            rows.push(row);
        } else if let Some(folder) = line.strip_suffix("/fd/:") {
            pid = folder.parse().with_context(|| format!("a process in `{line}`"))?;
        } else if let Some((fd, inode)) = line.split_once(" socket:[") {
            let inode = inode.trim_end_matches(']').parse()?;
            owners.entry(inode).or_default().insert((pid, fd.parse()?));
        }
    }
    let mut told = BTreeMap::new();
    for row in rows {
        let (name, state, uid) = parse(row).with_context(|| format!("the guest's row `{row}`"))?;
        let owners = owners.get(&name.4).cloned().unwrap_or_default();
        let uid = (name.4 != 0).then_some(uid);
        told.insert(name, (state, uid, owners));
    }
    if told.is_empty() {
        bail!("the guest shows no socket: {printed}");
    }
    Ok(told)
}

/// One row of a table of `/proc/net`, after the name of its namespace and table.
fn parse(row: &str) -> Option<(Name, String, u32)> {
    let words: Vec<&str> = row.split(' ').collect();
    let [net, table, local, remote, state, uid, inode] = words.as_slice() else { return None };
    let net = net.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    let state = match u8::from_str_radix(state, 16).ok()? {
        1 => "estab",
        2 => "syn-sent",
        3 | 12 => "syn-recv",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "unconn",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        _ => return None,
    };
    let ends = (end(local)?.to_string(), end(remote)?.to_string());
    let name = (net, table.trim_end_matches('6').to_owned(), ends.0, ends.1, inode.parse().ok()?);
    Some((name, state.to_owned(), uid.parse().ok()?))
}

/// An end as `/proc/net` writes it: words of the address in the guest's byte order, the port as a number.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_le_bytes())
    };
    let address: IpAddr = if address.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let words = [word(0)?, word(1)?, word(2)?, word(3)?];
        Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into()
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// One machine's threads equal its own.
pub(super) fn threads(shop: &Shop, id: &str) -> Result<String> {
    let count = agreement::compare(|| threads_from_guest(shop, id), || threads_from_ram(shop, id))?;
    Ok(format!("{count} threads"))
}

/// Names by process and thread.
type Threads = BTreeMap<(u32, u32), String>;

fn threads_from_ram(shop: &Shop, id: &str) -> Result<Threads> {
    let Response::Cpu(sample) = shop.ask(&Request::VmCpu { vm: id.into() })? else {
        bail!("not processor times");
    };
    let of = |process: api::admin::ProcessTime| {
        process.threads.into_iter().map(move |thread| ((process.pid, thread.tid), plain_name(&thread.name)))
    };
    Ok(sample.processes.into_iter().flat_map(of).collect())
}

fn threads_from_guest(shop: &Shop, id: &str) -> Result<Threads> {
    let printed = shop.vm(id).run("cd /proc; grep -H . [0-9]*/task/[0-9]*/comm 2>/dev/null")?.stdout;
    let mut threads = Threads::new();
    for line in printed.lines() {
        let (path, name) = line.split_once("/comm:").with_context(|| format!("a thread in `{line}`"))?;
        let (pid, tid) = path.split_once("/task/").with_context(|| format!("a thread in `{line}`"))?;
        threads.insert((pid.parse()?, tid.parse()?), plain_name(name));
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_proc_net_are_read() {
        for (row, expected) in [
            (
                "net:[4026531840] tcp 0100007F:1F90 0B00000A:C001 01 1000 4242",
                ("tcp", "127.0.0.1:8080", "10.0.0.11:49153", "estab", 4242),
            ),
            (
                "net:[1] udp6 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0 0",
                ("udp", "[::1]:53", "[::]:0", "unconn", 0),
            ),
        ] {
            let ((_, protocol, local, remote, inode), state, _) = parse(row).expect("a whole row");
            let told = (protocol.as_str(), local.as_str(), remote.as_str(), state.as_str(), inode);
            assert_eq!(told, expected);
        }
        for damaged in ["", "net:[1] tcp 0100007F 0B00000A:C001 01 0 0", "net:[1] tcp 0:0 0:0 63 0 0"] {
            assert!(parse(damaged).is_none(), "{damaged}");
        }
    }
}
