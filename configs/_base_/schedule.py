# 300 epochs on 8 GPUs with 16 images each.
max_epochs = 300
warmup_epochs = 3
num_last_epochs = 20  # without mosaic and mixup, with the L1 loss
base_lr = 0.002  # 0.001 / 64 for each image of a batch of 128

train_cfg = dict(
    type='ResumableTrainLoop',
    max_epochs=max_epochs,
    val_interval=10,
    dynamic_intervals=[(max_epochs - num_last_epochs, 1)],
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    # On a CPU the constructor trains in float32 instead.
    constructor='DeviceAwareOptimWrapperConstructor',
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=35.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        T_max=max_epochs - warmup_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=128)

custom_hooks = [
    dict(
        type='EMAHook',
        # decay = 0.9998 * (1 - exp(-step / 2000))
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        gamma=2000,
        update_buffers=True,
        priority=49,
    ),
    dict(type='LastStageHook', num_last_epochs=num_last_epochs, priority=48),
]
