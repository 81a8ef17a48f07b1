// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: overwrites the byte of kernel text at `address` with `value`, and puts
 * it back when the module is removed.
 */
#include <asm/special_insns.h>
#include <linux/module.h>

static unsigned long address;
module_param(address, ulong, 0);
static unsigned int value = 0x90;
module_param(value, uint, 0);

static u8 original;

static void write_protected(u8 *place, u8 byte)
{
	unsigned long cr0 = read_cr0(), open = cr0 & ~X86_CR0_WP;

	asm volatile("mov %0, %%cr0" : : "r"(open) : "memory");
	WRITE_ONCE(*place, byte);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
}

static int __init patch(void)
{
	if (!address)
		return -EINVAL;
	original = *(u8 *)address;
	write_protected((u8 *)address, value);
	return 0;
}

static void __exit restore(void)
{
	write_protected((u8 *)address, original);
}

module_init(patch);
module_exit(restore);
MODULE_DESCRIPTION("Changes kernel text, to be found");
MODULE_LICENSE("GPL");
