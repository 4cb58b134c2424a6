/* A provider for OpenSSL 3 whose generator keeps no state: every number comes from the kernel, by getrandom(2).
 *
 * OpenSSL seeds a generator of its own for each thread, and seeds it anew after a fork, but not in a copy of the whole
 * machine, which no process can notice. With this provider copies of a machine cannot draw the same keys.
 *
 * The numbers of functions and operations are those of OpenSSL's openssl/core_dispatch.h; provider(7) and
 * provider-rand(7) say what they do. No headers are needed, so that a small compiler is enough. */

typedef unsigned long size_t;
typedef long ssize_t;
typedef void function(void);
extern ssize_t getrandom(void *, size_t, unsigned int);

struct dispatch { int id; function *call; };
struct algorithm { const char *names, *properties; const struct dispatch *functions; const char *description; };
struct param { const char *key; unsigned int type; void *data; size_t size, returned; };

enum { OP_RAND = 5, PROVIDER_QUERY = 1027 };
enum { NEWCTX = 1, FREECTX, INSTANTIATE, UNINSTANTIATE, GENERATE, RESEED, LOCKING = 8, LOCK, UNLOCK, GET_PARAMS = 15 };
enum { READY = 1, BITS = 256, LARGEST_REQUEST = 1 << 16 };

static char context; /* OpenSSL wants an address; there is nothing to keep */

static int equal(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static void put(struct param *p, size_t value) {
    p->returned = p->size;
    if (p->size == sizeof(size_t)) *(size_t *)p->data = value;
    else if (p->size == sizeof(int)) *(int *)p->data = (int)value;
}

static void *new_context(void *provider, void *parent, const struct dispatch *calls) { return &context; }
static void free_context(void *ctx) {}
static int instantiate(void *ctx, unsigned int strength, int resistance, const void *text, size_t size, const void *p) {
    return strength <= BITS;
}
static int uninstantiate(void *ctx) { return 1; }
static int reseed(void *ctx, int resistance, const void *entropy, size_t size, const void *more, size_t more_size) {
    return 1;
}
static int locking(void *ctx) { return 1; } /* without state there is nothing to lock */
static void unlock(void *ctx) {}

static int generate(void *ctx, unsigned char *out, size_t size, unsigned int strength, int resistance, const void *more,
                    size_t more_size) {
    if (strength > BITS) return 0;
    while (size) {
        ssize_t got = getrandom(out, size, 0);
        if (got < 0) continue; /* interrupted by a signal: with flags 0 there is no other reason (getrandom(2)) */
        out += got;
        size -= got;
    }
    return 1;
}

static int get_params(void *ctx, struct param *p) {
    for (; p && p->key; p++) {
        if (equal(p->key, "state")) put(p, READY);
        else if (equal(p->key, "strength")) put(p, BITS);
        else if (equal(p->key, "max_request")) put(p, LARGEST_REQUEST);
    }
    return 1;
}

static const struct dispatch functions[] = {
    {NEWCTX, (function *)new_context}, {FREECTX, (function *)free_context}, {INSTANTIATE, (function *)instantiate},
    {UNINSTANTIATE, (function *)uninstantiate}, {GENERATE, (function *)generate}, {RESEED, (function *)reseed},
    {LOCKING, (function *)locking}, {LOCK, (function *)locking}, {UNLOCK, (function *)unlock},
    {GET_PARAMS, (function *)get_params}, {0, 0}};
static const struct algorithm algorithms[] = {
    {"KERNEL-RANDOM", "provider=emberbox", functions, "getrandom(2)"}, {0, 0, 0, 0}};

static const struct algorithm *query(void *provider, int operation, int *no_cache) {
    *no_cache = 0;
    return operation == OP_RAND ? algorithms : 0;
}

static const struct dispatch provider[] = {{PROVIDER_QUERY, (function *)query}, {0, 0}};

int OSSL_provider_init(const void *core, const struct dispatch *in, const struct dispatch **out, void **ctx) {
    *out = provider;
    *ctx = &context;
    return 1;
}
