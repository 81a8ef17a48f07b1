// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: hooks the system call `kill` with a tracer that may redirect it, or, with
 * `table`, in the table of system calls (its address, from /proc/kallsyms). Ends when the module is removed.
 */
#include <linux/ftrace.h>
#include <linux/module.h>
#include "common.h"

#define SYSCALL "__x64_sys_kill"
#define SYSCALL_NUMBER 62

static unsigned long table;
module_param(table, ulong, 0);

static unsigned long original;

static void notrace see_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			     struct ftrace_regs *regs)
{
}

static struct ftrace_ops tracer = { .func = see_call, .flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY };

static long refuse(const struct pt_regs *regs)
{
	return -EPERM;
}

static int __init hook(void)
{
	unsigned long replacement = (unsigned long)refuse;
	int error;

	if (table) {
		table += SYSCALL_NUMBER * sizeof(original);
		original = *(unsigned long *)table;
		write_protected((void *)table, &replacement, sizeof(replacement));
		return 0;
	}
	error = ftrace_set_filter(&tracer, SYSCALL, strlen(SYSCALL), 0);
	return error ?: register_ftrace_function(&tracer);
}

static void __exit unhook(void)
{
	if (table)
		write_protected((void *)table, &original, sizeof(original));
	else
		unregister_ftrace_function(&tracer);
}

module_init(hook);
module_exit(unhook);
MODULE_DESCRIPTION("Hooks a system call, to be found");
MODULE_LICENSE("GPL");
