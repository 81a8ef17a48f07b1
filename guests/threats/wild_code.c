// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: makes a page of code that belongs to no module, and does not even call
 * it. Gone when the module is removed.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>
#include "common.h"

/* `ret`, which is harmless wherever it is entered. */
#define RETURN 0xc3

typedef int change_fn(unsigned long address, int pages);

static void *code;

static int change(const char *name)
{
	change_fn *function = function_named(name);

	return function ? function((unsigned long)code, 1) : -ENOENT;
}

static int __init make(void)
{
	int error;

	code = vmalloc(PAGE_SIZE);
	if (!code)
		return -ENOMEM;
	memset(code, RETURN, PAGE_SIZE);
	error = change("set_memory_ro") ?: change("set_memory_x");
	if (error)
		vfree(code);
	return error;
}

static void __exit unmake(void)
{
	change("set_memory_nx");
	change("set_memory_rw");
	vfree(code);
}

module_init(make);
module_exit(unmake);
MODULE_DESCRIPTION("Makes code of no module, to be found");
MODULE_LICENSE("GPL");
