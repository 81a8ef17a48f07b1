// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: flips all bits of the byte of text or read-only data at `address`, and
 * puts it back when the module is removed.
 */
#include <linux/module.h>
#include "common.h"

static unsigned long address;
module_param(address, ulong, 0);

static u8 original;

static int __init patch(void)
{
	u8 flipped;

	if (!address)
		return -EINVAL;
	original = *(u8 *)address;
	flipped = ~original;
	write_protected((void *)address, &flipped, sizeof(flipped));
	return 0;
}

static void __exit restore(void)
{
	write_protected((void *)address, &original, sizeof(original));
}

module_init(patch);
module_exit(restore);
MODULE_DESCRIPTION("Changes the kernel's memory, to be found");
MODULE_LICENSE("GPL");
