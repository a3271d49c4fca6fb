/*
 * The guest's side of the end-to-end tests: process 1 of a guest that has nothing else. It mounts
 * the shared file system, connects to the host on vsock port 1024 and does what it is told there,
 * one line a command, one line an answer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 17];

#include "tour.h"

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int vsock(unsigned int port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

static int full_write(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t done = write(fd, data, len);

		if (done < 0)
			return -errno;
		data += done;
		len -= done;
	}
	return 0;
}

/* Sends everything back on all streams until each has ended. */
static void echo(int *fds, unsigned int count)
{
	struct { char *data; size_t from, to; int ended; } *s = calloc(count, sizeof(*s));
	struct pollfd *p = calloc(count, sizeof(*p));
	unsigned int left = count;
	size_t size = count > 8 ? 4096 : sizeof(buffer);

	for (unsigned int i = 0; i < count; i++) {
		s[i].data = malloc(size);
		fcntl(fds[i], F_SETFL, O_NONBLOCK);
	}
	while (left) {
		for (unsigned int i = 0; i < count; i++) {
			p[i].fd = fds[i];
			p[i].events = s[i].from < s[i].to ? POLLOUT : POLLIN;
		}
		poll(p, count, -1);
		for (unsigned int i = 0; i < count; i++) {
			ssize_t done;

			if (fds[i] < 0 || !p[i].revents)
				continue;
			if (s[i].from == s[i].to) {
				done = read(fds[i], s[i].data, size);
				if (done < 0 && errno == EAGAIN)
					continue;
				if (done <= 0) {
					shutdown(fds[i], SHUT_WR);
					close(fds[i]);
					fds[i] = -1;
					left--;
					continue;
				}
				s[i].from = 0;
				s[i].to = done;
			}
			done = write(fds[i], s[i].data + s[i].from, s[i].to - s[i].from);
			if (done > 0) {
				s[i].from += done;
			} else if (errno != EAGAIN) {
				close(fds[i]);
				fds[i] = -1;
				left--;
			}
		}
	}
}

static void echo_in_background(int *fds, unsigned int count)
{
	if (fork() == 0) {
		echo(fds, count);
		_exit(0);
	}
	for (unsigned int i = 0; i < count; i++)
		close(fds[i]);
}

static void command(FILE *out, char *line)
{
	char name[32] = "", a[256] = "", b[256] = "";
	long x = 0, y = 0;
	int fields = sscanf(line, "%31s %255s %255s %ld", name, a, b, &y);

	(void)fields;
	x = atol(b);
	errno = 0;
	if (!strcmp(name, "echo")) {
		int *fds = calloc(x, sizeof(int));

		for (int i = 0; i < x; i++) {
			fds[i] = vsock(atol(a) + i);
			if (fds[i] < 0) {
				fprintf(out, "errno %d\n", -fds[i]);
				return;
			}
		}
		echo_in_background(fds, x);
		fprintf(out, "ok\n");
	} else if (!strcmp(name, "listen")) {
		struct sockaddr_vm address = {
			.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = atol(a),
		};
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

		bind(fd, (struct sockaddr *)&address, sizeof(address));
		listen(fd, 1);
		fprintf(out, "errno %d\n", errno);
		if (fork() == 0) {
			int one = accept(fd, NULL, NULL);

			echo(&one, 1);
			_exit(0);
		}
		close(fd);
	} else if (!strcmp(name, "connect")) {
		int fd = vsock(atol(a));

		fprintf(out, "errno %d\n", fd < 0 ? -fd : 0);
		close(fd);
	} else if (!strcmp(name, "connects")) {
		int64_t start = now();

		for (int i = 0; i < x; i++) {
			int fd = vsock(atol(a) + i);

			if (fd < 0) {
				fprintf(out, "errno %d\n", -fd);
				return;
			}
			close(fd);
		}
		fprintf(out, "ns %ld\n", (long)((now() - start) / x));
	} else if (!strcmp(name, "pings")) {
		int fd = vsock(atol(a));
		int64_t start = now();

		for (int i = 0; i < x; i++)
			if (write(fd, "x", 1) != 1 || read(fd, buffer, 1) != 1)
				break;
		fprintf(out, "ns %ld\n", (long)((now() - start) / x));
		close(fd);
	} else if (!strcmp(name, "source")) {
		int fd = vsock(atol(a)), error = fd < 0 ? fd : 0;
		long sent = 0;

		memset(buffer, 'x', sizeof(buffer));
		while (!error && sent < x) {
			long part = x - sent < (long)sizeof(buffer) ? x - sent : (long)sizeof(buffer);

			error = full_write(fd, buffer, part);
			sent += part;
		}
		close(fd);
		fprintf(out, "errno %d\n", -error);
	} else if (!strcmp(name, "sink")) {
		int fd = vsock(atol(a));
		long got = 0;
		ssize_t part;

		while ((part = read(fd, buffer, sizeof(buffer))) > 0)
			got += part;
		fprintf(out, "got %ld %d\n", got, part < 0 ? errno : 0);
		close(fd);
	} else if (!strcmp(name, "ask")) {
		/* Says something, ends its own direction, and only then listens. */
		int fd = vsock(atol(a));
		ssize_t part;
		size_t got = 0;

		full_write(fd, b, strlen(b));
		shutdown(fd, SHUT_WR);
		while ((part = read(fd, buffer + got, 1000 - got)) > 0)
			got += part;
		fprintf(out, "%.*s\n", (int)got, buffer);
		close(fd);
	} else if (!strcmp(name, "cat")) {
		int fd = open(a, O_RDONLY | O_NONBLOCK);
		ssize_t got = fd < 0 ? -1 : read(fd, buffer, 1000);

		if (got < 0)
			fprintf(out, "errno %d\n", errno);
		else
			fprintf(out, "%.*s\n", (int)got, buffer);
		close(fd);
	} else if (!strcmp(name, "put")) {
		int fd = open(a, O_WRONLY | O_CREAT | O_NONBLOCK, 0644);

		if (fd >= 0)
			full_write(fd, b, strlen(b));
		fprintf(out, "errno %d\n", fd < 0 ? errno : 0);
		close(fd);
	} else if (!strcmp(name, "symlink")) {
		fprintf(out, "errno %d\n", symlink(a, b) ? errno : 0);
	} else if (!strcmp(name, "link")) {
		fprintf(out, "errno %d\n", link(a, b) ? errno : 0);
	} else if (!strcmp(name, "rename")) {
		fprintf(out, "errno %d\n", rename(a, b) ? errno : 0);
	} else if (!strcmp(name, "chown")) {
		fprintf(out, "errno %d\n", chown(a, x, y) ? errno : 0);
	} else if (!strcmp(name, "mknod")) {
		fprintf(out, "errno %d\n", mknod(a, S_IFCHR | 0666, makedev(x, y)) ? errno : 0);
	} else if (!strcmp(name, "mkfifo")) {
		fprintf(out, "errno %d\n", mkfifo(a, 0666) ? errno : 0);
	} else if (!strcmp(name, "stat")) {
		struct stat st;

		if (lstat(a, &st))
			fprintf(out, "errno %d\n", errno);
		else
			fprintf(out, "mode %o uid %u size %ld dev %lx\n", st.st_mode, st.st_uid,
				(long)st.st_size, (long)st.st_dev);
	} else if (!strcmp(name, "opens")) {
		int64_t start = now();

		for (int i = 0; i < x; i++) {
			int fd = open(a, O_RDONLY);

			if (fd < 0 || read(fd, buffer, 4096) < 0)
				break;
			close(fd);
		}
		fprintf(out, "ns %ld\n", (long)((now() - start) / x));
	} else if (!strcmp(name, "walk")) {
		int64_t start = now();

		for (int i = 0; i < x; i++) {
			int fd;

			snprintf(line, 300, "%s%d", a, i);
			fd = open(line, O_RDONLY);
			if (fd < 0 || read(fd, buffer, 4096) < 0)
				break;
			close(fd);
		}
		fprintf(out, "ns %ld\n", (long)((now() - start) / x));
	} else if (!strcmp(name, "stats")) {
		struct stat st;
		int64_t start = now();

		/* What does not exist is asked for anew each time. */
		for (int i = 0; i < x; i++)
			stat(a, &st);
		fprintf(out, "ns %ld\n", (long)((now() - start) / x));
	} else if (!strcmp(name, "read")) {
		int fd = open(a, O_RDONLY);
		int64_t start = now();
		long got = 0;
		ssize_t part;

		while ((part = read(fd, buffer, sizeof(buffer))) > 0)
			got += part;
		fprintf(out, "got %ld ns %ld\n", got, (long)(now() - start));
		close(fd);
	} else if (!strcmp(name, "write")) {
		int fd = open(a, O_WRONLY | O_CREAT | O_TRUNC, 0644), error = 0;
		int64_t start = now();

		for (long done = 0; done < x && !error; done += sizeof(buffer))
			error = full_write(fd, buffer, sizeof(buffer));
		close(fd);
		fprintf(out, "errno %d ns %ld\n", -error, (long)(now() - start));
	} else if (!strcmp(name, "tour")) {
		tour(out);
	} else if (!strcmp(name, "poweroff")) {
		sync();
		reboot(RB_POWER_OFF);
	} else {
		fprintf(out, "unknown command %s\n", name);
	}
}

int main(void)
{
	static char line[1024];
	int fd, error;
	FILE *in, *out;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	mkdir("/share", 0755);
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, "");
	error = mount("bulkhead", "/share", "virtiofs", 0, "") ? errno : 0;
	fd = vsock(1024);
	in = fdopen(fd, "r");
	out = fdopen(dup(fd), "w");
	if (fd < 0 || !in || !out) {
		printf("init: no connection to the host: %d\n", -fd);
		reboot(RB_POWER_OFF);
	}
	fprintf(out, "mounted %d\n", error);
	fflush(out);
	while (fgets(line, sizeof(line), in)) {
		command(out, line);
		fflush(out);
	}
	reboot(RB_POWER_OFF);
	return 0;
}
