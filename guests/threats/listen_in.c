// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: sees all frames of the device `device`, through a packet socket that
 * belongs to no process, with the device taking frames for others. Ends when the module is removed.
 */
#include <linux/if_ether.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <net/net_namespace.h>
#include <net/sock.h>

static char *device = "eth0";
module_param(device, charp, 0);

static struct socket *packets;

static int take_all(int change)
{
	struct net_device *found = dev_get_by_name(&init_net, device);
	int error = -ENODEV;

	if (found) {
		rtnl_lock();
		error = dev_set_promiscuity(found, change);
		rtnl_unlock();
		dev_put(found);
	}
	return error;
}

static int __init listen_in(void)
{
	int error = sock_create_kern(&init_net, PF_PACKET, SOCK_RAW, htons(ETH_P_ALL), &packets);

	if (error)
		return error;
	error = take_all(1);
	if (error)
		sock_release(packets);
	return error;
}

static void __exit leave(void)
{
	take_all(-1);
	sock_release(packets);
}

module_init(listen_in);
module_exit(leave);
MODULE_DESCRIPTION("Listens in, to be found");
MODULE_LICENSE("GPL");
