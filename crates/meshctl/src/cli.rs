// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use model::VmRef;

/// Where the daemon's socket is when nothing says otherwise.
const SYSTEM_SOCKET: &str = "/run/meshvisor/admin.sock";

const EXAMPLES: &str = "\
Examples:
  meshctl vm list                                    all machines with their network cards
  meshctl vm ps acme/web                             processes of a machine, read from its memory
  meshctl vm top acme/web                            who uses its processors, live
  meshctl vm flows acme/api --dot | dot -Tsvg        who in it talks to whom, as a picture
  meshctl service list                               who offers what, and who is left out
  meshctl why acme/web 10.0.0.12:8080                why this flow is allowed or denied
  meshctl why acme/web api --exe /usr/bin/curl       would curl be let through to the service `api`?
  meshctl why acme/web www.example.com:443           the same for a server outside
  meshctl flow watch --output json | jq .decidedBy   verdicts as they are made
  meshctl policy check examples/shop                 check manifests without a daemon, for CI

Exit codes:
  0  done
  1  refused or failed; for `policy check`: the manifests are wrong
  2  wrong usage";

/// Ask the service mesh on this host.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = EXAMPLES, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// The daemon's admin socket [default: $MESHVISOR_SOCKET, else meshvisor/admin.sock in
    /// $XDG_RUNTIME_DIR, else in /run]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// How to print the answer
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// One document for programs; streams print one per line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Virtual machines
    Vm {
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Flows between them
    Flow {
        #[command(subcommand)]
        command: FlowCommand,
    },
    /// What machines offer each other
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Why a flow is, or would be, allowed or denied
    Why(WhyArgs),
    /// Policies
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Network cards
    Port {
        #[command(subcommand)]
        command: PortCommand,
    },
    /// The daemon's health
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// All services with their endpoints: who gets new flows, and why others do not
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PortCommand {
    /// Have a card served by a certain poll core, where it stays until the daemon ends
    Move {
        /// The card, as tenant/machine/card
        nic: String,
        /// The core's number, or `side`
        #[arg(long)]
        core: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// All machines with their network cards
    List {
        /// Limit, reservation, shares and latency class as well
        #[arg(long, short)]
        wide: bool,
    },
    /// A machine's processes, read from its memory
    Ps {
        /// The machine, as tenant/name
        vm: VmRef,
        /// Command line, container, namespaces, memory, threads and state as well
        #[arg(long, short)]
        wide: bool,
    },
    /// A machine's processes as a tree
    Tree {
        /// The machine, as tenant/name
        vm: VmRef,
    },
    /// What a machine's processors do, every second until `q` is pressed
    Top {
        /// The machine, as tenant/name
        vm: VmRef,
        /// Watch one second, print, and exit; so it is when standard output is no terminal
        #[arg(long)]
        once: bool,
        /// Threads instead of processes
        #[arg(long)]
        threads: bool,
    },
    /// A machine's sockets and who holds them, read from its memory
    Ss {
        /// The machine, as tenant/name
        vm: VmRef,
        /// Raw and packet sockets, accept queues, round-trip times and bytes as well
        #[arg(long, short)]
        wide: bool,
    },
    /// Who in a machine talks to whom, and which conversation feeds which
    Flows {
        /// The machine, as tenant/name
        vm: VmRef,
        /// Print a graph for Graphviz instead
        #[arg(long)]
        dot: bool,
    },
    /// What hides or was changed in a machine's kernel
    Threats {
        /// The machine, as tenant/name
        vm: VmRef,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlowCommand {
    /// Flows in the table, the last seen first
    List {
        /// Only those of this machine, as tenant/name
        #[arg(long)]
        vm: Option<VmRef>,
    },
    /// Flows as they are judged, until interrupted
    Watch {
        /// Only those of this machine, as tenant/name
        #[arg(long)]
        vm: Option<VmRef>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The machine that opens the flow, as tenant/name
    pub(crate) from: VmRef,

    /// Whom it is for: ADDRESS:PORT (IPv6 in brackets), VM:PORT, the name of a service (TENANT/NAME if it is another
    /// tenant's), or DOMAIN:PORT of a server outside that a machine of the tenant has looked up
    pub(crate) to: String,

    /// The executable that opens it [default: the one last seen]
    #[arg(long, value_name = "PATH")]
    pub(crate) exe: Option<String>,

    /// The protocol
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp", "icmp", "icmpv6"])]
    pub(crate) protocol: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check manifests without a daemon: errors with file, line and column, and warnings
    Check {
        /// Files, or directories whose *.yaml and *.yml are read
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// What policy is in force
    Status,
}

impl Cli {
    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.socket.clone(), |name| std::env::var_os(name).map(PathBuf::from))
    }
}

fn socket(named: Option<PathBuf>, environment: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let set = |name| environment(name).filter(|path| !path.as_os_str().is_empty());
    named
        .or_else(|| set("MESHVISOR_SOCKET"))
        .or_else(|| set("XDG_RUNTIME_DIR").map(|directory| directory.join("meshvisor/admin.sock")))
        .unwrap_or_else(|| SYSTEM_SOCKET.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_told_from_refusal() {
        for line in [
            "",
            "vm",
            "vm ps",
            "vm ps web",
            "vm ps acme/Web",
            "why acme/web",
            "why acme/web api --protocol sctp",
            "policy check",
            "service",
            "port move acme/web/net0",
            "status --output yaml",
            "status extra",
        ] {
            let error =
                Cli::try_parse_from(["meshctl"].into_iter().chain(line.split_whitespace())).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let help = Cli::try_parse_from(["meshctl", "--help"]).unwrap_err();
        assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
        assert!(help.to_string().contains("Exit codes:"));
    }

    #[test]
    fn socket_is_named_by_flag_then_environment_then_place() {
        let given = |named: Option<&str>, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            };
            socket(named.map(PathBuf::from), variable).display().to_string()
        };
        let both = [("MESHVISOR_SOCKET", "/a"), ("XDG_RUNTIME_DIR", "/run/user/1")];
        assert_eq!(given(Some("/b"), &both), "/b");
        assert_eq!(given(None, &both), "/a");
        assert_eq!(given(None, &both[1..]), "/run/user/1/meshvisor/admin.sock");
        assert_eq!(given(None, &[("MESHVISOR_SOCKET", "")]), SYSTEM_SOCKET);
        assert_eq!(given(None, &[]), SYSTEM_SOCKET);
    }
}
