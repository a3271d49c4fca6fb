/* The whole user space of the test guests: says that it is up, then does what its argument says. */

static long call(long number, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

enum { WRITE = 1, PAUSE = 34, EXIT = 60, REBOOT = 169, GETPID = 39 };

static void say(const char *text)
{
	long length = 0;
	while (text[length])
		length++;
	call(WRITE, 1, (long)text, length, 0);
}

static void reboot(long command)
{
	call(REBOOT, 0xfee1dead, 672274793, command, 0);
}

__attribute__((used)) static void run(long *stack)
{
	const char *action = stack[0] > 1 ? (const char *)stack[2] : "off";

	say("guest is up\n");
	switch (action[0]) {
	case 'p': /* panic: number 1 ends */
		call(EXIT, 1, 0, 0, 0);
	case 'w': /* wait */
		for (;;)
			call(PAUSE, 0, 0, 0, 0);
	case 't': /* tick: a line for each so many system calls */
		for (;;) {
			for (long i = 0; i < 1000; i++)
				call(GETPID, 0, 0, 0, 0);
			say("tick\n");
		}
	case 'r': /* restart */
		reboot(0x01234567);
	default: /* power off */
		reboot(0x4321fedc);
	}
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");
