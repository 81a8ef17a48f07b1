/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What several of these modules need. */
#include <asm/special_insns.h>
#include <linux/kprobes.h>
#include <linux/string.h>

/*
 * Writes where pages are read-only. The kernel's own functions refuse to clear the bit that protects them, so
 * plain moves do it.
 */
static inline void write_protected(void *place, const void *bytes, size_t count)
{
	unsigned long flags, cr0, open;

	local_irq_save(flags);
	cr0 = read_cr0();
	open = cr0 & ~X86_CR0_WP;
	asm volatile("mov %0, %%cr0" : : "r"(open) : "memory");
	memcpy(place, bytes, count);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

/* Where a function is that the kernel does not export: a probe finds it. */
static inline void *function_named(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *address;

	if (register_kprobe(&probe))
		return NULL;
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}
