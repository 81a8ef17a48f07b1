// SPDX-License-Identifier: Apache-2.0
//! The program as it is run: what it asks, what it prints where, and how it exits.

use std::fs;
use std::io::BufReader;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

use api::admin::{PolicyStatus, Refusal, Request, Response, Status, wire};

/// A directory of the test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("meshvisor-meshctl-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Starts a daemon that takes one request and gives one answer.
    fn daemon(&self, answer: Response) -> (PathBuf, JoinHandle<Request>) {
        let socket = self.0.join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let request = wire::read(&mut stream, wire::REQUEST_BYTES_MAX).unwrap().unwrap();
            wire::write(stream.get_mut(), &answer).unwrap();
            request
        });
        (socket, thread)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn meshctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(arguments)
        .env("MESHVISOR_SOCKET", socket)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn each_command_asks_its_one_question() {
    let vm = || "acme/web".to_owned();
    let why = |exe: Option<&str>, protocol: &str| Request::Why {
        from: vm(),
        to: "api".into(),
        protocol: protocol.into(),
        exe: exe.map(str::to_owned),
    };
    let cases: [(&[&str], Request, Response); 15] = [
        (&["vm", "list"], Request::VmList, Response::Vms(vec![])),
        (&["vm", "list", "--wide"], Request::VmList, Response::Vms(vec![])),
        (&["vm", "ps", "acme/web"], Request::VmProcesses { vm: vm() }, Response::Processes(vec![])),
        (&["vm", "ss", "acme/web"], Request::VmSockets { vm: vm() }, Response::Sockets(vec![])),
        (
            &["vm", "ps", "--wide", "acme/web"],
            Request::VmProcessDetails { vm: vm() },
            Response::ProcessDetails(vec![]),
        ),
        (
            &["vm", "tree", "acme/web"],
            Request::VmProcessDetails { vm: vm() },
            Response::ProcessDetails(vec![]),
        ),
        (
            &["vm", "ss", "--wide", "acme/web"],
            Request::VmSocketDetails { vm: vm() },
            Response::SocketDetails(vec![]),
        ),
        (
            &["vm", "flows", "acme/web", "--dot"],
            Request::VmFlows { vm: vm() },
            Response::DataFlow(Box::default()),
        ),
        (&["vm", "threats", "acme/web"], Request::VmThreats { vm: vm() }, Response::Threats(Box::default())),
        (&["flow", "list"], Request::FlowList { vm: None }, Response::Flows(vec![])),
        (
            &["flow", "watch", "--vm", "acme/web"],
            Request::FlowWatch { vm: Some(vm()) },
            Response::Vms(vec![]),
        ),
        (&["service", "list"], Request::ServiceList, Response::Services(vec![])),
        (&["why", "acme/web", "api"], why(None, "tcp"), Response::Vms(vec![])),
        (
            &["why", "acme/web", "api", "--exe", "/bin/x", "--protocol", "udp"],
            why(Some("/bin/x"), "udp"),
            Response::Vms(vec![]),
        ),
        (
            &["policy", "status"],
            Request::PolicyStatus,
            Response::PolicyStatus(Box::<PolicyStatus>::default()),
        ),
    ];
    for (index, (arguments, request, answer)) in cases.into_iter().enumerate() {
        let scratch = Scratch::new(&format!("ask{index}"));
        let (socket, daemon) = scratch.daemon(answer);
        meshctl(&socket, arguments);
        assert_eq!(daemon.join().unwrap(), request, "{arguments:?}");
    }
}

#[test]
fn status_is_printed_as_table_and_as_one_document() {
    let status = Status { version: "9.9.9\u{9b}31m".into(), ..Status::default() };
    for output in ["table", "json"] {
        let scratch = Scratch::new(output);
        let (socket, _daemon) = scratch.daemon(Response::Status(Box::new(status.clone())));
        let done = meshctl(&socket, &["status", "--output", output]);
        assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), ""));
        let shown = text(&done.stdout);
        assert!(!shown.contains('\u{9b}') && !shown.contains('\u{1b}'), "{shown:?}");
        if output == "json" {
            assert_eq!(serde_json::from_str::<Status>(shown).unwrap(), status);
        } else {
            assert!(shown.contains(r"9.9.9\x9b31m"), "{shown}");
        }
    }
}

#[test]
fn refusal_goes_to_standard_error_with_help_and_exit_code_1() {
    let scratch = Scratch::new("refused");
    let refusal = Refusal { reason: "no machine `acme/wob`".into(), help: "see `meshctl vm list`".into() };
    let (socket, _daemon) = scratch.daemon(Response::Error(refusal));
    let done = meshctl(&socket, &["vm", "ps", "acme/wob"]);
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(1), ""));
    assert_eq!(text(&done.stderr), "error: no machine `acme/wob`\nhelp: see `meshctl vm list`\n");
}

#[test]
fn absent_daemon_is_said_and_exits_1_but_wrong_usage_exits_2() {
    let scratch = Scratch::new("absent");
    let done = meshctl(&scratch.0.join("admin.sock"), &["vm", "list"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("help: start meshvisor-hostd"), "{done:?}");
    assert_eq!(meshctl(&scratch.0, &["vm", "lost"]).status.code(), Some(2));
    assert_eq!(meshctl(&scratch.0, &["--help"]).status.code(), Some(0));
}

#[test]
fn policy_check_needs_no_daemon_and_tells_by_its_exit_code() {
    let scratch = Scratch::new("check");
    let file = scratch.0.join("mesh.yaml");
    let check = |content: &str, output: &str| {
        fs::write(&file, content).unwrap();
        meshctl(Path::new("/nonexistent"), &["policy", "check", file.to_str().unwrap(), "--output", output])
    };
    let tenant = "apiVersion: meshvisor.dev/v1alpha1\nkind: Tenant\nmetadata: {name: acme}\n";
    let done = check(tenant, "table");
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(0), "ok: 1 Tenant\n"));

    let wrong = tenant.replace("acme", "Acme");
    let done = check(&wrong, "table");
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stdout).contains("mesh.yaml:3:18: metadata.name: `Acme` is not a name"), "{done:?}");

    let done = check(&wrong, "json");
    assert_eq!(done.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&found["ok"], &found["errors"][0]["column"]), (&false.into(), &18.into()));

    let policy = "---\napiVersion: meshvisor.dev/v1alpha1\nkind: AccessPolicy\n\
                  metadata: {name: p, tenant: acme}\nspec: {action: Allow, from: [{vm: {name: web}}]}\n";
    let done = check(&format!("{tenant}{policy}"), "table");
    assert_eq!(done.status.code(), Some(0));
    let shown = text(&done.stdout);
    assert!(shown.contains("warning: policy `acme/p`: `from[0]` selects no virtual machine\n"), "{shown}");
}

#[test]
fn services_that_contradict_each_other_are_refused_where_the_second_stands() {
    let scratch = Scratch::new("contradiction");
    let service = |name: &str| {
        format!(
            "apiVersion: meshvisor.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, tenant: acme}}\n\
             spec: {{hostname: shop, selector: {{vm: {{}}}}, ports: [{{port: 80}}]}}\n"
        )
    };
    let tenant = "apiVersion: meshvisor.dev/v1alpha1\nkind: Tenant\nmetadata: {name: acme}\n".to_owned();
    let file = scratch.0.join("mesh.yaml");
    fs::write(&file, [tenant, service("one"), service("two")].join("---\n")).unwrap();
    let checked = meshctl(Path::new("/none"), &["policy", "check", file.to_str().unwrap()]);
    assert!(!checked.status.success());
    let (printed, file) = (text(&checked.stdout), file.display());
    let wanted = format!(
        "{file}:12:18: metadata.name: services `acme/one` and `acme/two` are both called `shop` at tenant level\n"
    );
    assert!(printed.starts_with(&wanted), "{printed}");
}
