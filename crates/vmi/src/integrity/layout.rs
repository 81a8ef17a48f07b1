// SPDX-License-Identifier: Apache-2.0
//! Where the members that inspections read lie. Each view has its own, and is left out where one is missing.

use crate::btf::Structures;
use crate::error::TypesError;

/// Declares a structure of member offsets in bytes, each given as structure and member.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $structure:literal $($member:literal)|+),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name { $(pub(super) $field: u32),* }

        impl $name {
            fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
                Ok(Self { $($field: types.offset_of_any($structure, &[$($member),+])?),* })
            }
        }
    };
}

view! {
    /// Process ids: a tree (xarray) of `struct pid`, each of which lists its task.
    Ids {
        tree: "pid_namespace" "idr.idr_rt.xa_head", slots: "xa_node" "slots",
        tasks: "pid" "tasks", links: "task_struct" "pid_links", exit_state: "task_struct" "exit_state",
    }
}
view! {
    /// Run queues.
    RunQueues { current: "rq" "curr", idle: "rq" "idle" }
}
view! {
    /// Tasks of the fair class on a run queue.
    FairTasks { list: "rq" "cfs_tasks", node: "task_struct" "se.group_node" }
}
view! {
    /// The list of modules.
    Modules { list: "module" "list", name: "module" "name" }
}
view! {
    /// What tells one load of a module from another, and the tables of what it rewrites in its own text.
    ModuleLives {
        state: "module" "state", folder: "module" "mkobj.kobj.sd", number: "kernfs_node" "id",
        keys: "module" "jump_entries", key_count: "module" "num_jump_entries",
        calls: "module" "static_call_sites", call_count: "module" "num_static_call_sites",
        traces: "module" "ftrace_callsites", trace_count: "module" "num_ftrace_callsites",
    }
}
view! {
    /// Where a module lies, before 6.4.
    ModuleLayout {
        base: "module" "core_layout.base", text_bytes: "module" "core_layout.text_size",
        init_base: "module" "init_layout.base", init_bytes: "module" "init_layout.text_size",
    }
}
view! {
    /// Where a module lies, from 6.4: an array by type, text first.
    ModuleMemory { memory: "module" "mem", base: "module_memory" "base", bytes: "module_memory" "size" }
}
view! {
    /// The tree of modules by address.
    ModuleTree {
        tree: "mod_tree_root" "root.tree", node: "mod_tree_node" "node", module: "mod_tree_node" "mod",
        left: "rb_node" "rb_left", right: "rb_node" "rb_right",
    }
}
view! {
    /// Generated code: BPF programs, trampolines and dispatchers.
    BpfSymbols { node: "bpf_ksym" "lnode", start: "bpf_ksym" "start", end: "bpf_ksym" "end" }
}
view! {
    /// Memory that BPF programs share, executable as a whole.
    BpfPacks { node: "bpf_prog_pack" "list", start: "bpf_prog_pack" "ptr" }
}
view! {
    /// Pages of instructions that probes have replaced.
    ProbeSlots {
        pages: "kprobe_insn_cache" "pages", node: "kprobe_insn_page" "list", slots: "kprobe_insn_page" "insns",
    }
}
view! {
    /// The code by which further processors start.
    RealMode { text: "real_mode_header" "text_start", end: "real_mode_header" "ro_end" }
}
view! {
    /// Grace periods of read-copy-update.
    GracePeriods { sequence: "rcu_state" "gp_seq" }
}
view! {
    /// Tasks of the real-time class on a run queue: a list for each priority.
    RealTimeTasks { lists: "rq" "rt.active.queue", node: "task_struct" "rt.run_list" }
}
view! {
    /// Tasks of the deadline class on a run queue: a tree.
    DeadlineTasks {
        tree: "rq" "dl.root", node: "task_struct" "dl.rb_node",
        left: "rb_node" "rb_left", right: "rb_node" "rb_right",
    }
}
view! {
    /// What stands in the deadline tree for all tasks of the fair class, from 6.8.
    FairServer { node: "rq" "fair_server.rb_node" }
}
view! {
    /// Tasks of the class that BPF programs schedule, from 6.12.
    ExtendedTasks { list: "rq" "scx.runnable_list", node: "task_struct" "scx.runnable_node" }
}
view! {
    /// Tracers.
    Tracers {
        func: "ftrace_ops" "func", next: "ftrace_ops" "next", flags: "ftrace_ops" "flags",
        list: "ftrace_ops" "list", trampoline: "ftrace_ops" "trampoline", trampoline_bytes: "ftrace_ops" "trampoline_size",
    }
}
view! {
    /// Where functions can be traced.
    TraceSites {
        next: "ftrace_page" "next", records: "ftrace_page" "records", count: "ftrace_page" "index",
        address: "dyn_ftrace" "ip",
    }
}
view! {
    /// Probes.
    Probes {
        node: "kprobe" "hlist", list: "kprobe" "list", address: "kprobe" "addr", opcode: "kprobe" "opcode",
        before: "kprobe" "pre_handler", after: "kprobe" "post_handler",
    }
}
view! {
    /// Probes at the return of functions.
    ReturnProbes { probe: "kretprobe" "kp", handler: "kretprobe" "handler" }
}
view! {
    /// Probes that are jumps.
    JumpProbes { probe: "optimized_kprobe" "kp", copied: "optimized_kprobe" "optinsn.copied_insn" }
}
view! {
    /// Packet sockets of a namespace.
    PacketSockets { list: "net" "packet.sklist" }
}
view! {
    /// What a network device takes.
    DeviceFlags { flags: "net_device" "flags", handler: "net_device" "rx_handler", name: "net_device" "name" }
}
view! {
    /// Packet filters of a namespace.
    PacketHooks {
        v4: "net" "nf.hooks_ipv4", v6: "net" "nf.hooks_ipv6",
        count: "nf_hook_entries" "num_hook_entries", hooks: "nf_hook_entries" "hooks",
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct IntegrityLayout {
    pub(super) ids: Option<Ids>,
    pub(super) run_queues: Option<RunQueues>,
    pub(super) fair_tasks: Option<FairTasks>,
    pub(super) real_time_tasks: Option<RealTimeTasks>,
    pub(super) deadline_tasks: Option<DeadlineTasks>,
    pub(super) fair_server: Option<FairServer>,
    pub(super) extended_tasks: Option<ExtendedTasks>,
    pub(super) modules: Option<Modules>,
    pub(super) module_lives: Option<ModuleLives>,
    pub(super) module_layout: Option<ModuleLayout>,
    /// With the size of an element.
    pub(super) module_memory: Option<(ModuleMemory, u32)>,
    pub(super) module_tree: Option<ModuleTree>,
    pub(super) bpf_symbols: Option<BpfSymbols>,
    pub(super) bpf_packs: Option<BpfPacks>,
    pub(super) probe_slots: Option<ProbeSlots>,
    pub(super) real_mode: Option<RealMode>,
    pub(super) grace_periods: Option<GracePeriods>,
    pub(super) tracers: Option<Tracers>,
    /// With the size of a record.
    pub(super) trace_sites: Option<(TraceSites, u32)>,
    pub(super) probes: Option<Probes>,
    pub(super) return_probes: Option<ReturnProbes>,
    pub(super) jump_probes: Option<JumpProbes>,
    pub(super) packet_sockets: Option<PacketSockets>,
    pub(super) device_flags: Option<DeviceFlags>,
    pub(super) packet_hooks: Option<PacketHooks>,
    /// `sk_protocol`, where it is not a bit-field.
    pub(super) sock_protocol: Option<u32>,
}

impl IntegrityLayout {
    pub(crate) fn resolve(types: &Structures<'_>) -> Self {
        let sized = |name| types.size(name).ok();
        Self {
            ids: Ids::resolve(types).ok(),
            run_queues: RunQueues::resolve(types).ok(),
            fair_tasks: FairTasks::resolve(types).ok(),
            real_time_tasks: RealTimeTasks::resolve(types).ok(),
            deadline_tasks: DeadlineTasks::resolve(types).ok(),
            fair_server: FairServer::resolve(types).ok(),
            extended_tasks: ExtendedTasks::resolve(types).ok(),
            modules: Modules::resolve(types).ok(),
            module_lives: ModuleLives::resolve(types).ok(),
            module_layout: ModuleLayout::resolve(types).ok(),
            module_memory: ModuleMemory::resolve(types).ok().zip(sized("module_memory")),
            module_tree: ModuleTree::resolve(types).ok(),
            bpf_symbols: BpfSymbols::resolve(types).ok(),
            bpf_packs: BpfPacks::resolve(types).ok(),
            probe_slots: ProbeSlots::resolve(types).ok(),
            real_mode: RealMode::resolve(types).ok(),
            grace_periods: GracePeriods::resolve(types).ok(),
            tracers: Tracers::resolve(types).ok(),
            trace_sites: TraceSites::resolve(types).ok().zip(sized("dyn_ftrace")),
            probes: Probes::resolve(types).ok(),
            return_probes: ReturnProbes::resolve(types).ok(),
            jump_probes: JumpProbes::resolve(types).ok(),
            packet_sockets: PacketSockets::resolve(types).ok(),
            device_flags: DeviceFlags::resolve(types).ok(),
            packet_hooks: PacketHooks::resolve(types).ok(),
            sock_protocol: types.offset("sock", "sk_protocol").ok(),
        }
    }
}
