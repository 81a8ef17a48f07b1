// SPDX-License-Identifier: Apache-2.0
//! What the test guests run: one program under several names, so that policy can tell processes apart.
//!
//! Every outcome is one line on standard output that starts with a word the harness looks for; times are in
//! the guest's own clock. Exit status 0 means that the outcome was the peaceful one.
//!
//! Deliberately absent: anything that a scenario does not use, and dependencies but for system calls.
#![forbid(unsafe_code)]

mod bulk;
mod bursts;
mod client;
mod outcome;
mod retire;
mod server;
mod stall;
mod storm;
mod stream;
mod twist;

use std::process::ExitCode;

const USAGE: &str = "\
usage: PROGRAM connect HOST:PORT [TIMES]     open connections, one after the other, and say how each ended
       PROGRAM hold HOST:PORT [TIMES]        open connections and keep them until killed
       PROGRAM ask HOST:PORT TEXT            send a line, print the first line of the answer
       PROGRAM datagram HOST:PORT TEXT       send a datagram, print the answer
       PROGRAM bulk HOST:PORT MIB            send that much, check that the same comes back
       PROGRAM bursts HOST:PORT BYTES TIMES  send many datagrams of that size by one call, check that the same
                                             come back
       PROGRAM stream HOST:PORT STOP-FILE    send a numbered line every 10 ms until STOP-FILE exists
       PROGRAM storm HOST:PORT TIMES         open and close connections as fast as they go
       PROGRAM twists HOST:PORT TIMES        open connections with sockets that changed hands
       PROGRAM forks STOP-FILE               start processes as fast as they go until STOP-FILE exists
       PROGRAM serve PORT                    send back what arrives, by TCP and UDP
       PROGRAM stall PORT BACKLOG GO-FILE    the same by TCP, but accept nothing until GO-FILE exists
       PROGRAM retire PORT HOST:PORT GO-FILE the same by TCP, but once GO-FILE exists, tell HOST:PORT by a
                                             datagram and stop listening";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let peaceful = match words.as_slice() {
        ["connect", to] => client::connect(to, 1),
        ["connect", to, times] => match times.parse() {
            Ok(times) => client::connect(to, times),
            Err(_) => return usage(),
        },
        ["hold", to] => client::hold(to, 1),
        ["hold", to, times] => match times.parse() {
            Ok(times) => client::hold(to, times),
            Err(_) => return usage(),
        },
        ["ask", to, text] => client::ask(to, text),
        ["datagram", to, text] => client::datagram(to, text),
        ["bulk", to, mib] => match mib.parse() {
            Ok(mib) => bulk::run(to, mib),
            Err(_) => return usage(),
        },
        ["bursts", to, bytes, times] => match (bytes.parse(), times.parse()) {
            (Ok(bytes), Ok(times)) => bursts::run(to, bytes, times),
            _ => return usage(),
        },
        ["stream", to, stop] => stream::run(to, stop.as_ref()),
        ["storm", to, times] => match times.parse() {
            Ok(times) => storm::connections(to, times),
            Err(_) => return usage(),
        },
        ["twists", to, times] => match times.parse() {
            Ok(times) => twist::all(to, times),
            Err(_) => return usage(),
        },
        ["twist-as", kind, to] => twist::one(kind, to),
        ["forks", stop] => storm::processes(stop.as_ref()),
        ["stall", port, backlog, go] => match (port.parse(), backlog.parse()) {
            (Ok(port), Ok(backlog)) => stall::run(port, backlog, go.as_ref()),
            _ => return usage(),
        },
        ["retire", port, witness, go] => match port.parse() {
            Ok(port) => retire::run(port, witness, go.as_ref()),
            Err(_) => return usage(),
        },
        ["serve", port] => match port.parse() {
            Ok(port) => server::serve(port),
            Err(_) => return usage(),
        },
        _ => return usage(),
    };
    if peaceful { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
