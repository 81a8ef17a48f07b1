// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: speaks TCP with `to` (port `to_port`) from `from` (port `port`) without a
 * socket, as a rootkit does that hides its traffic from every table. Frames go to the Ethernet address `mac`
 * through `device`. A word each 100 ms, until the module is removed.
 */
#include <linux/etherdevice.h>
#include <linux/inet.h>
#include <linux/ip.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/tcp.h>
#include <linux/workqueue.h>
#include <net/ip.h>
#include <net/net_namespace.h>
#include <net/tcp.h>

static char *device = "eth0", *from, *to, *mac;
static ushort port = 4444, to_port;
module_param(device, charp, 0);
module_param(from, charp, 0);
module_param(to, charp, 0);
module_param(mac, charp, 0);
module_param(port, ushort, 0);
module_param(to_port, ushort, 0);

static const char word[] = "unowned\n";
static struct net_device *card;
static u8 next_hop[ETH_ALEN];
static __be32 own, peer;
static u32 sequence = 1, expected;
static bool connected;

static void send(u8 flags, const char *data, unsigned int len)
{
	struct sk_buff *skb = alloc_skb(LL_MAX_HEADER + sizeof(struct iphdr) + sizeof(struct tcphdr) + len, GFP_KERNEL);
	struct iphdr *ip;
	struct tcphdr *tcp;

	if (!skb)
		return;
	skb_reserve(skb, LL_MAX_HEADER);
	skb_reset_network_header(skb);
	ip = skb_put_zero(skb, sizeof(*ip));
	skb_set_transport_header(skb, sizeof(*ip));
	tcp = skb_put_zero(skb, sizeof(*tcp));
	skb_put_data(skb, data, len);
	ip->version = 4;
	ip->ihl = 5;
	ip->ttl = 64;
	ip->protocol = IPPROTO_TCP;
	ip->tot_len = htons(skb->len);
	ip->saddr = own;
	ip->daddr = peer;
	ip->check = ip_fast_csum(ip, ip->ihl);
	tcp->source = htons(port);
	tcp->dest = htons(to_port);
	tcp->seq = htonl(sequence);
	tcp->ack_seq = htonl(expected);
	tcp->doff = sizeof(*tcp) / 4;
	tcp->window = htons(0xffff);
	tcp_flag_byte(tcp) = flags;
	tcp->check = tcp_v4_check(sizeof(*tcp) + len, own, peer, csum_partial(tcp, sizeof(*tcp) + len, 0));
	skb->protocol = htons(ETH_P_IP);
	skb->dev = card;
	if (dev_hard_header(skb, card, ETH_P_IP, next_hop, card->dev_addr, skb->len) < 0)
		kfree_skb(skb);
	else
		dev_queue_xmit(skb);
}

/* Takes what comes back, before the kernel answers it with a reset. */
static unsigned int take(void *unused, struct sk_buff *skb, const struct nf_hook_state *state)
{
	const struct iphdr *ip = ip_hdr(skb);
	struct tcphdr buffer;
	const struct tcphdr *tcp;

	if (ip->protocol != IPPROTO_TCP || ip->saddr != peer)
		return NF_ACCEPT;
	tcp = skb_header_pointer(skb, ip->ihl * 4, sizeof(buffer), &buffer);
	if (!tcp || tcp->dest != htons(port) || tcp->source != htons(to_port))
		return NF_ACCEPT;
	if (tcp->syn && tcp->ack && !connected) {
		expected = ntohl(tcp->seq) + 1;
		sequence++;
		connected = true;
	} else if (connected) {
		u32 end = ntohl(tcp->seq) + ntohs(ip->tot_len) - ip->ihl * 4 - tcp->doff * 4;

		if (after(end, expected))
			expected = end;
	}
	return NF_DROP;
}

static const struct nf_hook_ops hook = {
	.hook = take, .pf = NFPROTO_IPV4, .hooknum = NF_INET_PRE_ROUTING, .priority = NF_IP_PRI_FIRST,
};

static void speak(struct work_struct *work)
{
	if (connected) {
		send(TCPHDR_ACK | TCPHDR_PSH, word, sizeof(word) - 1);
		sequence += sizeof(word) - 1;
	} else {
		send(TCPHDR_SYN, NULL, 0);
	}
	schedule_delayed_work(to_delayed_work(work), HZ / 10);
}

static DECLARE_DELAYED_WORK(speaking, speak);

static int __init send_unowned(void)
{
	int error;

	if (!from || !to || !mac || !in4_pton(from, -1, (u8 *)&own, -1, NULL) ||
	    !in4_pton(to, -1, (u8 *)&peer, -1, NULL) || !mac_pton(mac, next_hop))
		return -EINVAL;
	card = dev_get_by_name(&init_net, device);
	if (!card)
		return -ENODEV;
	error = nf_register_net_hook(&init_net, &hook);
	if (error)
		dev_put(card);
	else
		schedule_delayed_work(&speaking, 0);
	return error;
}

static void __exit leave(void)
{
	cancel_delayed_work_sync(&speaking);
	nf_unregister_net_hook(&init_net, &hook);
	dev_put(card);
}

module_init(send_unowned);
module_exit(leave);
MODULE_DESCRIPTION("Sends without a socket, to be found");
MODULE_LICENSE("GPL");
