#include "settings.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Overwritten where a library is made for somebody; volatile, so that the compiler does not rely on it. */
static const volatile char stamp[48] = "simulated-version=............................";

static char settings[4096];

static void read_settings(void) {
    if (settings[0]) return;
    settings[0] = '\n';
    int file = open("/etc/simulated-driver", O_RDONLY);
    if (file < 0) return;
    size_t filled = 1;
    for (ssize_t n; (n = read(file, settings + filled, sizeof settings - 1 - filled)) > 0;) filled += n;
    close(file);
}

/* What stands behind "KEY=" in the first such line from AT on. */
static const char *line_from(const char *at, const char *key) {
    size_t n = strlen(key);
    while ((at = strchr(at, '\n')))
        if (!strncmp(++at, key, n) && at[n] == '=') return at + n + 1;
    return 0;
}

const char *setting(const char *key) {
    read_settings();
    return line_from(settings, key);
}

static long decimal(const char *at) {
    long n = 0, sign = *at == '-' ? -1 : 1;
    for (at += *at == '-'; *at >= '0' && *at <= '9'; at++) n = 10 * n + (*at - '0');
    return sign * n;
}

long number(const char *key, long otherwise) {
    const char *value = setting(key);
    return value ? decimal(value) : otherwise;
}

const char *names(const char *key, const char *name) {
    size_t n = strlen(name);
    for (const char *value = setting(key); value; value = line_from(value, key))
        if (!strncmp(value, name, n) && (value[n] == '\n' || value[n] == 0 || value[n] == '=')) return value + n;
    return 0;
}

int fault(const char *function) {
    static const char words[] = "the simulated driver aborts\n";
    if (names("hang", function)) for (;;) pause();
    if (names("crash", function)) raise(SIGSEGV);
    if (names("abort", function)) { if (write(2, words, sizeof words - 1) < 0) _exit(1); abort(); }
    /* A child that keeps our output open, as nvidia-modprobe might. */
    if (names("grandchild", function) && fork() == 0) { setsid(); sleep(30); _exit(0); }
    const char *code = names("fail", function);
    return code && *code == '=' ? decimal(code + 1) : 0;
}

const char *version_text(const char *key) {
    static char text[sizeof stamp];
    const char *is = setting(key);
    for (size_t i = 0; i < sizeof text; i++) text[i] = stamp[i];
    if (!is) is = strchr(text, '=') + 1;
    size_t n = strcspn(is, "\n");
    if (n >= sizeof text) n = sizeof text - 1;
    memmove(text, is, n);
    text[n] = 0;
    return text;
}

struct version version(const char *key) {
    struct version v = {{0}};
    const char *at = version_text(key);
    for (int i = 0; i < 3 && at; i++) {
        v.part[i] = decimal(at);
        at = strchr(at, '.');
        if (at) at++;
    }
    return v;
}

/* Data sheets, rounded; no verdict depends on more than the number of multiprocessors. */
static const struct model models[] = {
    {"K520", "118a", "GRID K520", 3, 0, 8, 4294770688UL, 797000, 2500000, 256, 524288, 2, 49152, 2048, 0},
    {"M60", "13f2", "Tesla M60", 5, 2, 16, 7988903936UL, 1177500, 2505000, 256, 2097152, 2, 98304, 2048, 0},
    {"K80", "102d", "Tesla K80", 3, 7, 13, 11996954624UL, 823500, 2505000, 384, 1572864, 2, 114688, 2048, 0},
    {"V100", "1db1", "Tesla V100-SXM2-16GB", 7, 0, 80, 16935682048UL, 1530000, 877000, 4096, 6291456, 5, 98304, 2048, 6},
    {"V100-32", "1db5", "Tesla V100-SXM2-32GB", 7, 0, 80, 34079899648UL, 1530000, 877000, 4096, 6291456, 5, 98304, 2048, 6},
    {"T4", "1eb8", "Tesla T4", 7, 5, 40, 15655829504UL, 1590000, 5001000, 256, 4194304, 3, 65536, 1024, 0},
    {"T4G", "1eb4", "NVIDIA T4G", 7, 5, 40, 15655829504UL, 1590000, 5001000, 256, 4194304, 3, 65536, 1024, 0},
    {"A100", "20b0", "NVIDIA A100-SXM4-40GB", 8, 0, 108, 42297786368UL, 1410000, 1215000, 5120, 41943040, 3, 167936, 2048, 12},
    {"A100-80", "20b2", "NVIDIA A100-SXM4-80GB", 8, 0, 108, 85097447424UL, 1410000, 1593000, 5120, 41943040, 3, 167936, 2048, 12},
    {"A10G", "2237", "NVIDIA A10G", 8, 6, 80, 23696375808UL, 1710000, 6251000, 384, 6291456, 2, 102400, 1536, 0},
    {"L4", "27b8", "NVIDIA L4", 8, 9, 58, 23580639232UL, 2040000, 6251000, 192, 50331648, 2, 102400, 1536, 0},
    {"L40S", "26b9", "NVIDIA L40S", 8, 9, 142, 47697362944UL, 2520000, 9001000, 384, 100663296, 2, 102400, 1536, 0},
    {"RTX4500", "2c3a", "NVIDIA RTX PRO 4500 Blackwell Server Edition", 12, 0, 82, 34190917632UL, 2407000, 12501000, 256, 67108864, 2, 102400, 1536, 0},
    {"RTX6000", "2bb5", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 12, 0, 188, 101973753856UL, 2430000, 12481000, 512, 134217728, 2, 102400, 1536, 0},
    {"H100", "2330", "NVIDIA H100 80GB HBM3", 9, 0, 132, 85520809984UL, 1980000, 2619000, 5120, 52428800, 3, 233472, 2048, 18},
    {"H200", "2335", "NVIDIA H200", 9, 0, 132, 150754820096UL, 1980000, 3201000, 6144, 62914560, 3, 233472, 2048, 18},
    {"B200", "2901", "NVIDIA B200", 10, 0, 148, 191514673152UL, 1965000, 3996000, 7680, 132644864, 4, 233472, 2048, 18},
    {"B300", "3182", "NVIDIA B300 SXM6 AC", 10, 3, 148, 287428608000UL, 1920000, 3996000, 8192, 132644864, 4, 233472, 2048, 18},
    {"GB200", "2941", "NVIDIA GB200", 10, 0, 152, 198674743296UL, 2062000, 3996000, 8192, 132644864, 4, 233472, 2048, 18},
    {"GB300", "31c2", "NVIDIA GB300", 10, 3, 152, 298634444800UL, 2062000, 3996000, 8192, 132644864, 4, 233472, 2048, 18},
};

/* By "gpus=8xH100" or "gpus=8x2330". */
const struct model *model(void) {
    const char *gpus = setting("gpus"), *key = gpus ? strchr(gpus, 'x') : 0;
    if (!key) key = "xT4\n";
    size_t n = strcspn(++key, "\n");
    for (unsigned i = 0; i < sizeof models / sizeof *models; i++) {
        const char *either[] = {models[i].key, models[i].id};
        for (int j = 0; j < 2; j++)
            if (strlen(either[j]) == n && !strncmp(key, either[j], n)) return &models[i];
    }
    abort(); /* a model that nobody has described */
}

void print_name(char *to, size_t size) {
    const char *label = setting("label");
    snprintf(to, size, "%s%s%.*s", model()->name, label ? " " : "", label ? (int)strcspn(label, "\n") : 0, label ? label : "");
}

int links(void) { return model()->links; }

/* Two hexadecimal digits at offset AT of the GPU's address in "pci=0000:53:00.0 0000:64:00.0 …". */
static int of_address(int gpu, int at, int otherwise) {
    const char *list = setting("pci");
    if (!list || strcspn(list, "\n") < 13 * (size_t)gpu + 12) return otherwise;
    int n = 0;
    for (const char *c = list + 13 * gpu + at, *end = c + 2; c < end; c++) n = 16 * n + (*c <= '9' ? *c - '0' : *c - 'a' + 10);
    return n;
}
int bus(int gpu) { return of_address(gpu, 5, 0x10 + gpu); }
int slot(int gpu) { return of_address(gpu, 8, 0); }
int gpu_at(const char *address) {
    char wanted[16];
    const char *place = strchr(address, ':');
    for (int i = 0; place && i < number("gpus", 1); i++) {
        snprintf(wanted, sizeof wanted, ":%02x:%02x.0", bus(i), slot(i));
        /* Hexadecimal digits in either case. */
        for (int c = 0; (wanted[c] | 0x20) == (place[c] | 0x20); c++)
            if (!wanted[c] || !wanted[c + 1]) return i;
    }
    return -1;
}
int uuid_byte(int gpu, int i) { return i == 15 ? gpu : 0; }
