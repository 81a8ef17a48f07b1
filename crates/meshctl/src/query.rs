// SPDX-License-Identifier: Apache-2.0
//! Commands that ask the daemon: one request, one answer, rendered.

use std::path::Path;

use api::admin::{Client, ClientError, Request, Response};

use crate::cli::{Command, FlowCommand, PolicyCommand, PortCommand, ServiceCommand, VmCommand, WhyArgs};
use crate::output::Output;
use crate::render;
use crate::top;

/// Asks and prints. Always true unless it fails: whatever the daemon answers is an answer.
pub(crate) fn run(command: &Command, socket: &Path, output: &Output) -> anyhow::Result<bool> {
    let mut client = Client::connect(socket)?;
    if let Command::Flow { command: FlowCommand::Watch { vm } } = command {
        for flow in client.watch(vm.as_ref().map(ToString::to_string))? {
            output.print_next(&flow?, render::flow_line)?;
        }
        return Ok(true);
    }
    if let Command::Vm { command: VmCommand::Top { vm, once, threads } } = command {
        top::run(&mut client, vm, *once, *threads, output)?;
        return Ok(true);
    }
    let Some(request) = request(command) else { return Ok(false) };
    match (command, client.call(&request)?) {
        (Command::Vm { command: VmCommand::List { wide: true } }, Response::Vms(vms)) => {
            output.print(vms.as_slice(), render::wide_vms)?;
        }
        (Command::Vm { command: VmCommand::Tree { .. } }, Response::ProcessDetails(processes)) => {
            output.print(processes.as_slice(), render::process_tree)?;
        }
        (Command::Vm { command: VmCommand::Flows { dot: true, .. } }, Response::DataFlow(flow)) => {
            output.print(&*flow, render::graph)?;
        }
        (_, response) => print(&response, output)?,
    }
    Ok(true)
}

/// The request for a command; none if the command is not one question to the daemon.
fn request(command: &Command) -> Option<Request> {
    Some(match command {
        Command::Vm { command } => match command {
            VmCommand::List { .. } => Request::VmList,
            VmCommand::Ps { vm, wide: false } => Request::VmProcesses { vm: vm.to_string() },
            VmCommand::Ps { vm, wide: true } | VmCommand::Tree { vm } => {
                Request::VmProcessDetails { vm: vm.to_string() }
            }
            VmCommand::Ss { vm, wide: false } => Request::VmSockets { vm: vm.to_string() },
            VmCommand::Ss { vm, wide: true } => Request::VmSocketDetails { vm: vm.to_string() },
            VmCommand::Flows { vm, .. } => Request::VmFlows { vm: vm.to_string() },
            VmCommand::Top { .. } => return None,
            VmCommand::Threats { vm } => Request::VmThreats { vm: vm.to_string() },
        },
        Command::Flow { command: FlowCommand::List { vm } } => {
            Request::FlowList { vm: vm.as_ref().map(ToString::to_string) }
        }
        Command::Service { command: ServiceCommand::List } => Request::ServiceList,
        Command::Why(WhyArgs { from, to, exe, protocol }) => Request::Why {
            from: from.to_string(),
            to: to.clone(),
            protocol: protocol.clone(),
            exe: exe.clone(),
        },
        Command::Policy { command: PolicyCommand::Status } => Request::PolicyStatus,
        Command::Port { command: PortCommand::Move { nic, core } } => {
            Request::PortMove { nic: nic.clone(), core: core.clone() }
        }
        Command::Status => Request::Status,
        Command::Policy { command: PolicyCommand::Check { .. } }
        | Command::Flow { command: FlowCommand::Watch { .. } } => return None,
    })
}

/// Prints an answer by what it is; the daemon answers what it was asked.
fn print(response: &Response, output: &Output) -> anyhow::Result<()> {
    match response {
        Response::Vms(vms) => output.print(vms.as_slice(), render::vms),
        Response::Processes(processes) => output.print(processes.as_slice(), render::processes),
        Response::Sockets(sockets) => output.print(sockets.as_slice(), render::sockets),
        Response::ProcessDetails(processes) => output.print(processes.as_slice(), render::process_details),
        Response::SocketDetails(sockets) => output.print(sockets.as_slice(), render::socket_details),
        Response::DataFlow(flow) => output.print(&**flow, render::data_flow),
        Response::Cpu(_) => Err(ClientError::Unexpected { expected: "an answer to the question" }.into()),
        Response::Threats(threats) => output.print(&**threats, render::threats),
        Response::Flows(flows) => output.print(flows.as_slice(), render::flows),
        Response::Flow(flow) => output.print(&**flow, render::flow_line),
        Response::Services(services) => output.print(services.as_slice(), render::services),
        Response::Explanation(explanation) => output.print(&**explanation, render::explanation),
        Response::PortMoved(moved) => output.print(moved, render::port_moved),
        Response::Status(status) => output.print(&**status, render::status),
        Response::PolicyStatus(status) => output.print(&**status, render::policy_status),
        Response::Error(refusal) => Err(ClientError::Refused(refusal.clone()).into()),
    }
}
