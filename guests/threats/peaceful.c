// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest may well do, and what must not be found: switches a static key of its own, probes a function and
 * filters packets.
 */
#include <linux/jump_label.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>

static DEFINE_STATIC_KEY_FALSE(seen);
static int packets;

static int see_probe(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static unsigned int see_packet(void *unused, struct sk_buff *skb, const struct nf_hook_state *state)
{
	if (static_branch_unlikely(&seen))
		packets++;
	return NF_ACCEPT;
}

static struct kprobe probe = { .symbol_name = "vfs_read", .offset = 0x20, .pre_handler = see_probe };
static struct nf_hook_ops filter = { .hook = see_packet, .pf = NFPROTO_IPV4, .hooknum = NF_INET_LOCAL_IN };

static int __init begin(void)
{
	int error = nf_register_net_hook(&init_net, &filter);

	if (error)
		return error;
	/* Not every kernel has an instruction at that place. */
	if (register_kprobe(&probe))
		probe.addr = NULL;
	static_branch_enable(&seen);
	return 0;
}

static void __exit end(void)
{
	static_branch_disable(&seen);
	if (probe.addr)
		unregister_kprobe(&probe);
	nf_unregister_net_hook(&init_net, &filter);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Does nothing wrong");
MODULE_LICENSE("GPL");
