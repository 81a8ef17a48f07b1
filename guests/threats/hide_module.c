// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: probes a system call, filters packets, and on `echo Y
 * >/sys/module/hide_module/parameters/hidden` takes this module off the list of modules, with `from_tree` also out
 * of the tree by which the kernel finds whose code an address is. `echo N` there puts it back.
 */
#include <linux/module.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/skbuff.h>
#include "common.h"

static bool from_tree;
module_param(from_tree, bool, 0);

static bool hidden;
static struct list_head *before;

static int see_probe(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static unsigned int see_packet(void *unused, struct sk_buff *skb, const struct nf_hook_state *state)
{
	return NF_ACCEPT;
}

static struct kprobe probe = { .symbol_name = "__x64_sys_kill", .pre_handler = see_probe };
static struct nf_hook_ops filter = { .hook = see_packet, .pf = NFPROTO_IPV4, .hooknum = NF_INET_LOCAL_IN };

typedef void change_tree_fn(struct module *module);

static int change_tree(const char *name)
{
	change_tree_fn *function = function_named(name);

	if (function)
		function(THIS_MODULE);
	return function ? 0 : -ENOENT;
}

static int set_hidden(const char *text, const struct kernel_param *param)
{
	int error = param_set_bool(text, param);

	if (error || hidden == !!before)
		return error;
	if (hidden) {
		before = THIS_MODULE->list.prev;
		list_del_rcu(&THIS_MODULE->list);
		return from_tree ? change_tree("mod_tree_remove") : 0;
	}
	list_add_rcu(&THIS_MODULE->list, before);
	before = NULL;
	return from_tree ? change_tree("mod_tree_insert") : 0;
}

static const struct kernel_param_ops hidden_ops = { .set = set_hidden, .get = param_get_bool };
module_param_cb(hidden, &hidden_ops, &hidden, 0600);

static int __init hide(void)
{
	int error = register_kprobe(&probe);

	if (error)
		return error;
	error = nf_register_net_hook(&init_net, &filter);
	if (error)
		unregister_kprobe(&probe);
	return error;
}

static void __exit show(void)
{
	nf_unregister_net_hook(&init_net, &filter);
	unregister_kprobe(&probe);
}

module_init(hide);
module_exit(show);
MODULE_DESCRIPTION("Hides itself, to be found");
MODULE_LICENSE("GPL");
