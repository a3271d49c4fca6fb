/*
 * One of everything a program can ask of a file system. Returns the first thing that did not work.
 */
#include <dirent.h>
#include <grp.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#define MUST(what) do { if (!(what)) { fprintf(out, "errno %d at %s\n", errno, #what); return; } } while (0)

static int entries(const char *path)
{
	DIR *dir = opendir(path);
	int count = 0;

	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count;
}

/* What another user than root does, with a group that only the request names. */
static int as_user(void)
{
	gid_t groups[] = { 3000, 4000 };
	struct stat st;
	int fd;

	if (setgroups(2, groups) || setgid(2000) || setuid(1000))
		return 1;
	fd = open("mine", O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || write(fd, "x", 1) != 1 || fstat(fd, &st) || st.st_uid != 1000)
		return 2;
	close(fd);
	if (open("/share/tour/roots", O_RDONLY) >= 0 || errno != EACCES)
		return 3;
	/* Readable through the supplementary group alone. */
	if (open("/share/tour/group", O_RDONLY) < 0)
		return 4;
	if (mkdir("mydir", 0700) || symlink("mine", "mylink") || rename("mine", "mydir/mine"))
		return 5;
	if (setxattr("mydir/mine", "user.a", "b", 1, 0) || unlink("mydir/mine"))
		return 6;
	return 0;
}

static void tour(FILE *out)
{
	struct statfs fs;
	struct stat st;
	struct timespec times[2] = { { 5, 6 }, { 7, 8 } };
	/* A file capability, as setcap(8) writes it: cap_net_raw, permitted and effective. */
	static const unsigned char capability[20] = { 1, 0, 0, 2, 0, 32 };
	char text[64], *map;
	off_t in_at = 0;
	int fd, other, status;

	MUST(!mkdir("/share/tour", 0755) && !chdir("/share/tour"));
	MUST((fd = open("file", O_RDWR | O_CREAT, 0644)) >= 0);
	MUST(write(fd, "0123456789", 10) == 10 && pwrite(fd, "ab", 2, 20) == 2);
	MUST(pread(fd, text, 10, 0) == 10 && !memcmp(text, "0123456789", 10));
	MUST(lseek(fd, 0, SEEK_END) == 22 && lseek(fd, 0, SEEK_DATA) == 0);
	MUST(!fsync(fd) && !fdatasync(fd) && !syncfs(fd));
	MUST(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100000) && !fallocate(fd, 0, 0, 5000));
	MUST(!ftruncate(fd, 22) && !truncate("file", 21));
	MUST(!fchmod(fd, 04755) && !chmod("file", 0640) && !fchown(fd, 5, 6) && !chown("file", 0, 0));
	MUST(!utimensat(AT_FDCWD, "file", times, 0) && !futimens(fd, times));
	MUST(!stat("file", &st) && st.st_mtim.tv_sec == 7 && st.st_mtim.tv_nsec == 8);
	MUST((other = open("copy", O_RDWR | O_CREAT | O_APPEND, 0644)) >= 0);
	MUST(syscall(SYS_copy_file_range, fd, &in_at, other, NULL, 10, 0) == -1 || in_at > 0);
	close(other);
	MUST((other = open("copy", O_WRONLY | O_TRUNC)) >= 0 && !fstat(other, &st) && !st.st_size);
	in_at = 0;
	MUST(syscall(SYS_copy_file_range, fd, &in_at, other, NULL, 10, 0) == 10);
	close(other);
	MUST((map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) != MAP_FAILED);
	map[0] = 'M';
	MUST(!msync(map, 4096, MS_SYNC) && pread(fd, text, 1, 0) == 1 && text[0] == 'M');
	munmap(map, 4096);
	MUST(!flock(fd, LOCK_EX) && !flock(fd, LOCK_UN));
	MUST(!fcntl(fd, F_SETLK, &(struct flock){ .l_type = F_WRLCK, .l_len = 5 }));
	MUST(!setxattr("file", "user.one", "1", 1, 0) && !fsetxattr(fd, "user.two", "22", 2, 0));
	MUST(getxattr("file", "user.two", text, 64) == 2 && getxattr("file", "user.one", NULL, 0) == 1);
	MUST(listxattr("file", text, 64) >= 18 && !removexattr("file", "user.one"));
	MUST(getxattr("file", "user.none", text, 64) == -1 && errno == ENODATA);
	MUST(!setxattr("file", "security.capability", capability, 20, 0));
	MUST(pwrite(fd, "x", 1, 0) == 1);
	MUST(getxattr("file", "security.capability", text, 64) == -1 && errno == ENODATA);
	close(fd);
	MUST(!statfs(".", &fs) && fs.f_blocks > 0 && !access("file", R_OK));
	MUST(!link("file", "hard") && !symlink("file", "soft") && readlink("soft", text, 64) == 4);
	MUST(!lchown("soft", 9, 9) && !lstat("soft", &st) && st.st_uid == 9);
	MUST(!utimensat(AT_FDCWD, "soft", times, AT_SYMLINK_NOFOLLOW));
	MUST(!syscall(SYS_renameat2, AT_FDCWD, "hard", AT_FDCWD, "copy", RENAME_EXCHANGE));
	MUST(syscall(SYS_renameat2, AT_FDCWD, "hard", AT_FDCWD, "copy", RENAME_NOREPLACE) == -1);
	MUST(!mkfifo("fifo", 0600) && !mknod("node", S_IFCHR | 0600, makedev(1, 3)));
	MUST(!mknod("plain", S_IFREG | 0600, 0));
	MUST(!mkdir("many", 0755));
	for (int i = 0; i < 300; i++) {
		snprintf(text, sizeof(text), "many/%d", i);
		MUST((fd = creat(text, 0644)) >= 0);
		close(fd);
	}
	MUST(entries("many") == 302 && entries("many") == 302);
	for (int i = 0; i < 300; i++) {
		snprintf(text, sizeof(text), "many/%d", i);
		MUST(!unlink(text));
	}
	MUST(!rmdir("many"));
	/* An open file outlives its name. */
	MUST((fd = open("hard", O_RDWR)) >= 0 && !unlink("hard") && write(fd, "y", 1) == 1);
	MUST(!fstat(fd, &st) && st.st_nlink == 0);
	close(fd);
	MUST((fd = open(".", O_TMPFILE | O_RDWR, 0600)) == -1);
	MUST((fd = open("big", O_RDWR | O_CREAT | O_DIRECT, 0644)) >= 0);
	MUST(write(fd, buffer, 65536) == 65536 && lseek(fd, 0, SEEK_HOLE) == 65536);
	close(fd);
	/* A change of owner takes a program's special rights away. */
	MUST((fd = open("suid", O_WRONLY | O_CREAT, 0755)) >= 0 && !fchmod(fd, 06755));
	MUST(!fchown(fd, 1000, 1000) && !fstat(fd, &st) && !(st.st_mode & 06000));
	MUST(!fchmod(fd, 06755) && !fstat(fd, &st) && (st.st_mode & 06000) == 06000);
	close(fd);
	MUST((fd = open("roots", O_WRONLY | O_CREAT, 0600)) >= 0);
	close(fd);
	MUST((fd = open("group", O_WRONLY | O_CREAT, 0640)) >= 0 && !fchown(fd, 0, 4000));
	close(fd);
	MUST(!mkdir("user", 0777) && !chmod("user", 02777) && !chown("user", 0, 4000) && !chdir("user"));
	if (fork() == 0)
		_exit(as_user());
	signal(SIGCHLD, SIG_DFL);
	MUST(wait(&status) > 0);
	if (status) {
		fprintf(out, "the other user failed: %x\n", status);
		return;
	}
	fprintf(out, "all done\n");
}
