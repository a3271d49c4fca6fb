/*
 * Breaks a guest from within. Runs as root with every capability inside a container.
 *
 *   crash WHAT ID [ARGUMENT…]      ID is the container's name, which is part of its root's path
 *
 * It prints `now` at the moment from which the host's reaction is to be timed.
 *
 * A container is confined to namespaces of the guest even with every capability. The way out of
 * them used here is the kernel's own: a core dump is piped to a program that the kernel starts as
 * root in its first namespaces, beside the agent. To the host that is nothing; the guest's kernel
 * is the container's own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	char line[256];

	snprintf(line, sizeof(line), "<0>crash: %s: %s\n", what, strerror(errno));
	/* A helper of the kernel has no other way to tell. */
	(void)!write(open("/../dev/kmsg", O_WRONLY), line, strlen(line));
	fputs(line, stderr);
	exit(3);
}

static void now(void)
{
	(void)!write(1, "now\n", 4);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail(path);
	close(fd);
}

/* A procfs whose sysctls can be written: the container's own is read-only there. */
static void mount_proc(void)
{
	mkdir("/tmp/proc", 0700);
	if (mount("proc", "/tmp/proc", "proc", 0, NULL) != 0)
		fail("mount proc");
}

/*
 * Has the kernel start `crash HELPER ID` outside of all containers, by a child that dies: the
 * container's own first process is immune to the signals it sends itself.
 */
static void from_outside(const char *id, const char *helper)
{
	char pattern[128];
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	mount_proc();
	/*
	 * The agent has laid its root over the kernel's own, where the helper starts: `..` at the root
	 * leads up to it.
	 */
	if (snprintf(pattern, sizeof(pattern), "|/../run/bulkhead/share/%s/rootfs/crash %s %s", id,
		helper, id) >= (int)sizeof(pattern))
		fail("the container's name is too long");
	put("/tmp/proc/sys/kernel/core_pattern", pattern);
	setrlimit(RLIMIT_CORE, &unlimited);
	now();
	pid_t child = fork();
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		raise(SIGSEGV);
		_exit(4);
	}
	int status = 0;
	if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status))
		fail("dump core");
}

/* Overwrites the program of process 1, which then dies of its next instruction. */
static void kill_agent(void)
{
	static unsigned char trap[1 << 16];
	char line[512];
	unsigned long start, end;
	char rights[8];
	FILE *maps = fopen("/../proc/1/maps", "r");
	int memory = open("/../proc/1/mem", O_RDWR);

	memset(trap, 0xcc, sizeof(trap));
	if (!maps || memory < 0)
		fail("open process 1");
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %7s", &start, &end, rights) == 3 && rights[2] == 'x'
			&& !strstr(line, "["))
			for (; start < end; start += sizeof(trap)) {
				size_t size = end - start < sizeof(trap) ? end - start : sizeof(trap);
				(void)!pwrite(memory, trap, size, (off_t)start);
			}
}

/* Stops process 1 for ever. */
static void freeze_agent(void)
{
	if (fork() != 0)
		return;
	if (ptrace(PTRACE_SEIZE, 1, 0, 0) != 0 || ptrace(PTRACE_INTERRUPT, 1, 0, 0) != 0)
		exit(3);
	waitpid(1, NULL, __WALL);
	/* The kernel has waited for the readers of its core dump. */
	close(0);
	for (;;)
		pause();
}

/* An ext4 file system that is to panic at its first error, and an error. */
static void panic(const char *id)
{
	char path[256];
	int control = open("/../dev/loop-control", O_RDWR);
	int number = ioctl(control, LOOP_CTL_GET_FREE);

	snprintf(path, sizeof(path), "/../run/bulkhead/share/%s/rootfs/ext4.img", id);
	int image = open(path, O_RDWR);
	snprintf(path, sizeof(path), "/../dev/loop%d", number);
	int loop = open(path, O_RDWR);
	if (image < 0 || loop < 0 || ioctl(loop, LOOP_SET_FD, image) != 0)
		fail("set up a loop device");
	/* What somebody has open for writing cannot be mounted. */
	close(loop);
	mkdir("/mnt", 0700);
	if (mount(path, "/mnt", "ext4", 0, "errors=panic") != 0)
		fail("mount ext4");
	snprintf(path, sizeof(path), "/../sys/fs/ext4/loop%d/trigger_fs_error", number);
	put(path, "the test's panic");
}

/* Fills memory without end; says so once `quiet` MiB are full. */
static void eat(int quiet)
{
	for (int mib = 0;; mib++) {
		if (mib == quiet)
			now();
		char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			fail("mmap");
		memset(memory, 1, 1 << 20);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	const char *id = argc > 2 ? argv[2] : "";

	if (strcmp(what, "agent") == 0) {
		/* The end of this process wakes the agent, which is asleep in a system call. */
		from_outside(id, "helper-agent");
	} else if (strcmp(what, "helper-agent") == 0) {
		kill_agent();
	} else if (strcmp(what, "freeze") == 0) {
		from_outside(id, "helper-freeze");
		/* Its output would have to pass the agent. */
		close(open("/frozen", O_CREAT | O_WRONLY, 0600));
		for (;;)
			pause();
	} else if (strcmp(what, "helper-freeze") == 0) {
		freeze_agent();
	} else if (strcmp(what, "panic") == 0) {
		from_outside(id, "helper-panic");
		pause();
	} else if (strcmp(what, "helper-panic") == 0) {
		panic(id);
	} else if (strcmp(what, "eat") == 0) {
		eat(argc > 3 ? atoi(argv[3]) : 0);
	} else if (strcmp(what, "eat-all") == 0) {
		mount_proc();
		put("/tmp/proc/sys/vm/panic_on_oom", "1");
		eat(argc > 3 ? atoi(argv[3]) : 0);
	} else {
		fprintf(stderr, "usage: crash agent|freeze|panic|eat|eat-all ID [MIB]\n");
		return 2;
	}
	return 0;
}
