// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: leads the interrupt gate `vector` into this module. The vector should be
 * one that no device uses. Put back when the module is removed.
 */
#include <asm/desc.h>
#include <linux/module.h>
#include "common.h"

static unsigned char vector = 0xd7;
module_param(vector, byte, 0);

static gate_desc *gate;
static gate_desc original;

static void notrace handle(void)
{
}

static int __init hook(void)
{
	unsigned long target = (unsigned long)handle;
	struct desc_ptr table;
	gate_desc changed;

	store_idt(&table);
	gate = (gate_desc *)table.address + vector;
	original = changed = *gate;
	changed.offset_low = (u16)target;
	changed.offset_middle = (u16)(target >> 16);
	changed.offset_high = (u32)(target >> 32);
	write_protected(gate, &changed, sizeof(changed));
	return 0;
}

static void __exit unhook(void)
{
	write_protected(gate, &original, sizeof(original));
}

module_init(hook);
module_exit(unhook);
MODULE_DESCRIPTION("Redirects an interrupt, to be found");
MODULE_LICENSE("GPL");
